#include "tests/comm/fake_nccl/nccl_group.h"

#include <thread>
#include <utility>

#include "tests/comm/fake_nccl/fake_side_stream.h"

namespace sluice {

std::shared_ptr<const NcclLibrary> FakeNcclLibrary() {
  static const auto* const library = new std::shared_ptr<const NcclLibrary>(
      NcclLibrary::Open({.path = FakeNcclPath(), .packages = {}}).value());
  return *library;
}

std::vector<absl::StatusOr<std::unique_ptr<Communicator>>> TryToMakeNcclGroup(
    Group control, std::vector<std::unique_ptr<SideStream>> streams, const CommOptions& options,
    const Clock* clock) {
  const std::shared_ptr<const NcclLibrary> library = FakeNcclLibrary();
  std::vector<absl::StatusOr<std::unique_ptr<Communicator>>> made(control.size());
  std::vector<std::thread> threads;
  for (size_t r = 0; r < control.size(); ++r) {
    threads.emplace_back([&, r] {
      made[r] = MakeNcclCommunicator(library, std::move(control[r]), std::move(streams[r]), options,
                                     clock);
    });
  }
  for (std::thread& thread : threads) thread.join();
  return made;
}

Group MakeNcclGroup(Group control, const CommOptions& options, const Clock* clock) {
  std::vector<std::unique_ptr<SideStream>> streams;
  for (size_t r = 0; r < control.size(); ++r) streams.push_back(MakeFakeSideStream(kFakeStaging));
  Group group;
  for (auto& made : TryToMakeNcclGroup(std::move(control), std::move(streams), options, clock))
    group.push_back(std::move(made).value());
  return group;
}

}  // namespace sluice
