// offload/run/doctor.h
//
// What `sluice doctor` and sluice_doctor say of a machine.
//
// Keys of the doctor's report:
//   cpu.model
//   cpu.cores_allowed            by affinity and quota
//   cpu.cores_machine
//   cpu.numa_nodes
//   cpu.quota_cores              that the tightest cgroup allows; null: as many as there are
//   vector_target                of the arithmetic
//   memory.machine_bytes
//   memory.available_bytes       by machine and cgroup
//   memory.cgroup_limit_bytes    the tightest limit; these three only if there is one
//   memory.cgroup_used_bytes
//   memory.cgroup_path
//   huge_pages                   what arenas are made of
//   engine                       the I/O engine that is chosen, and how it runs
//   memlock_limit_bytes          -1: none
//   device                       the device that is chosen, and why
//   path.path                    the directory asked about; these only if one was
//   path.description             file system, direct I/O, alignment
//   path.direct_io               whether there is direct I/O
//   path.free_bytes
//   path.drive                   below it; null: none that the kernel knows
//   path.drive.name              of the whole drive
//   path.drive.model             null: not known, as the next ones
//   path.drive.bus               how it is attached, and how fast
//   path.drive.numa_node         nearest to it
//   path.drive.numa_distance     from there to the nearest core that may be used; 10: none
//   path.error                   instead, if it can't be used
//   verdict                      fine; slower: than it could be; or cannot run
//   advice                       what to do, in order, each with the command if there is one

#ifndef SLUICE_OFFLOAD_RUN_DOCTOR_H_
#define SLUICE_OFFLOAD_RUN_DOCTOR_H_

#include <string>

namespace sluice {

// The machine as Sluice sees it, with advice; `path` (may be empty) is a directory that could hold
// swap files.
std::string DoctorJson(const std::string& path);

}  // namespace sluice

#endif  // SLUICE_OFFLOAD_RUN_DOCTOR_H_
