// tests/offload/views_fixture.h
//
// Views over an arena of 64 KiB on the host device, as tests use them.

#ifndef SLUICE_TESTS_OFFLOAD_VIEWS_FIXTURE_H_
#define SLUICE_TESTS_OFFLOAD_VIEWS_FIXTURE_H_

#include <gtest/gtest.h>

#include <atomic>
#include <memory>
#include <utility>

#include "core/memory_resource.h"
#include "core/sim_memory.h"
#include "core/status.h"
#include "offload/run/views.h"
#include "tests/core/waiting_inbox.h"

namespace sluice {

class ViewsTest : public testing::Test {
 protected:
  ViewsTest() {
    device_ = MakeHostDevice({}, &clock_, &memory_).value();
    MakeViews(nullptr);
  }

  void MakeViews(const std::atomic<bool>* heeded) {
    views_.reset();
    auto arena = std::make_shared<Arena>(*Arena::Create(&counted_, KiB(64)));
    base_ = arena->memory().data();
    views_ = std::make_unique<Views>(
        std::move(arena), device_.get(), waiting_.inbox(), [this] { ++freed_; },
        [](const absl::Status& status) { ADD_FAILURE() << status; }, heeded);
  }

  DlManagedTensor* View(uint32_t unit) {
    const absl::StatusOr<DlManagedTensor*> view = views_->MakeView(UnitIndex(unit));
    SLUICE_CHECK_MSG(view.ok(), Message(view.status()));
    return *view;
  }
  // Until `n` times something has come out of use.
  void WaitForFreed(int n) {
    waiting_.HandleUntil([&] { return freed_ >= n; });
  }

  SimMemory memory_;
  LimitingResource counted_{&memory_, GiB(1)};
  SteadyClock clock_;
  WaitingInbox waiting_;
  std::unique_ptr<Device> device_;
  std::byte* base_ = nullptr;
  int freed_ = 0;
  std::unique_ptr<Views> views_;
};

}  // namespace sluice

#endif  // SLUICE_TESTS_OFFLOAD_VIEWS_FIXTURE_H_
