// tools/doctor_measure.h
//
// What `sluice doctor` measures, for about a second in all: enough to see what is far from what was
// bought, not to tune by.
//
// Keys of what the doctor measures:
//   measured.memory_read_gb_per_s     10^9 bytes a second, by all cores that may be used
//   measured.memory_copy_gb_per_s     likewise; what is copied counts once
//   measured.drive_read_gb_per_s      at the directory; null: none was given, or see error
//   measured.drive_write_gb_per_s     likewise
//   measured.drive_written_bytes      to a file that is gone
//   measured.to_gpu_gb_per_s          of the GPU that is chosen; null: there is none
//   measured.from_gpu_gb_per_s        likewise
//   measured.errors                   why something is null that should not be
//   measured.drive_error              only if the drive failed: that one

#ifndef SLUICE_TOOLS_DOCTOR_MEASURE_H_
#define SLUICE_TOOLS_DOCTOR_MEASURE_H_

#include <string>

#include "tools/json_file.h"

namespace sluice::tools {

// `path` (may be empty) is a directory that files can be made in.
Json DoctorMeasure(const std::string& path);

}  // namespace sluice::tools

#endif  // SLUICE_TOOLS_DOCTOR_MEASURE_H_
