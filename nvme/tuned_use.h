// nvme/tuned_use.h
//
// What of a file of tuned settings holds for the drives of a run, and whether the file is of this
// machine and of these drives at all: if not, it is used all the same, and that is said.
//
// Threads: any. Only the functions that look at the machine block, on system calls.

#ifndef SLUICE_NVME_TUNED_USE_H_
#define SLUICE_NVME_TUNED_USE_H_

#include <span>
#include <string>
#include <vector>

#include "core/cgroup.h"
#include "nvme/tuned.h"

namespace sluice {

MachineIdentity ThisMachine();

// Of the file system and drive at `path`, which is made absolute, links resolved, as far as it is
// there.
DriveIdentity IdentityOf(const FileReader& read, const std::string& path);

struct TunedChoice {
  TunedSettings settings;        // for all of the run's drives together
  std::vector<DriveRate> rates;  // by drive; empty if one of them is not in the file
  std::vector<std::string> warnings;
};

// For a run on `drives` (at least one) of `machine`: of a single drive its own settings; of all
// that were tuned together, in any order, the set's; of some of them the set's, with as many
// transfers in flight as theirs together. A directory that is not in the file is taken for another
// one of a drive that is, if there is one. `source`: the file's name. Pure.
TunedChoice ChooseTuned(const Tuned& tuned, const std::string& source,
                        const MachineIdentity& machine, std::span<const DriveIdentity> drives);

}  // namespace sluice

#endif  // SLUICE_NVME_TUNED_USE_H_
