// tests/comm/fake_nccl/nccl_group.h
//
// Ranks over the tests' own libnccl.so.2, as threads of one process have them.

#ifndef SLUICE_TESTS_COMM_FAKE_NCCL_NCCL_GROUP_H_
#define SLUICE_TESTS_COMM_FAKE_NCCL_NCCL_GROUP_H_

#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "comm/communicator.h"
#include "comm/nccl.h"

namespace sluice {

using Group = std::vector<std::unique_ptr<Communicator>>;

// Little, so that what is moved in pieces takes several.
inline constexpr Bytes kFakeStaging = KiB(16);

std::shared_ptr<const NcclLibrary> FakeNcclLibrary();

// What each rank of `control` makes, all at the same time.
std::vector<absl::StatusOr<std::unique_ptr<Communicator>>> TryToMakeNcclGroup(
    Group control, std::vector<std::unique_ptr<SideStream>> streams, const CommOptions& options,
    const Clock* clock);
// All well.
Group MakeNcclGroup(Group control, const CommOptions& options, const Clock* clock);

}  // namespace sluice

#endif  // SLUICE_TESTS_COMM_FAKE_NCCL_NCCL_GROUP_H_
