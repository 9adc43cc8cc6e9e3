// HBM that the embedding framework supplies, over the C ABI: views lie in it, and it is given back
// when the runtime has ended and its last view has died, but never by a call that fails.

#include <gmock/gmock.h>

#include <array>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <thread>

#include "core/dlpack.h"
#include "tests/offload/c_api_fixture.h"

namespace sluice {
namespace {

using ::testing::HasSubstr;

class SuppliedHbmTest : public CApiTest {
 protected:
  void SetUp() override {
    model_ = MakeModel();
    given_back_ = 0;
    tensor_.dl_tensor = {.data = memory_.data(),
                         .device = {.device_type = kDlCpu, .device_id = 0},
                         .ndim = 1,
                         .dtype = {.code = 1, .bits = 8, .lanes = 1},
                         .shape = &size_};
    tensor_.deleter = [](DlManagedTensor*) { ++given_back_; };
  }

  sluice_status Create(int64_t hbm_bytes = -1) {
    sluice_options options = DefaultOptions();
    options.hbm_bytes = hbm_bytes;
    options.hbm_memory = &tensor_;
    return sluice_runtime_create(model_, &options, &runtime_);
  }

  static inline int given_back_ = 0;
  alignas(4096) std::array<std::byte, 1 << 16> memory_{};
  int64_t size_ = 1 << 16;
  DlManagedTensor tensor_{};
};

TEST_F(SuppliedHbmTest, ViewsLieInItAndItIsGivenBackAfterTheLast) {
  ASSERT_EQ(SLUICE_OK, Create()) << Error();
  Load(3);
  sluice_ticket ticket = 0;
  ASSERT_EQ(SLUICE_OK, sluice_acquire(runtime_, 1, nullptr, &ticket)) << Error();
  ASSERT_EQ(SLUICE_OK, Wait(ticket)) << Error();
  void* view = nullptr;
  ASSERT_EQ(SLUICE_OK, sluice_unit_view(runtime_, 1, &view)) << Error();
  auto* shown = static_cast<DlManagedTensor*>(view);
  const auto* bytes = static_cast<const std::byte*>(shown->dl_tensor.data);
  EXPECT_GE(bytes, memory_.data());
  EXPECT_LE(bytes + 5000 * sizeof(float), memory_.data() + memory_.size());
  EXPECT_EQ(3.0f, static_cast<const float*>(shown->dl_tensor.data)[4999]);
  ASSERT_EQ(SLUICE_OK, sluice_runtime_destroy(runtime_)) << Error();
  EXPECT_EQ(0, given_back_);
  shown->deleter(shown);
  EXPECT_EQ(1, given_back_);
}

// Nothing of the caller's is used when destroy has returned, though another thread was in a call:
// one that waits for room which never comes.
TEST_F(SuppliedHbmTest, DestroyWaitsForCallsOfOtherThreads) {
  ASSERT_EQ(SLUICE_OK, Create(5 * 4096)) << Error();  // the larger unit
  Load(3);
  sluice_ticket held = 0;
  ASSERT_EQ(SLUICE_OK, sluice_acquire(runtime_, 1, nullptr, &held)) << Error();
  ASSERT_EQ(SLUICE_OK, Wait(held)) << Error();
  sluice_ticket pending = 0;
  ASSERT_EQ(SLUICE_OK, sluice_acquire(runtime_, 0, nullptr, &pending)) << Error();
  ASSERT_EQ(SLUICE_PENDING, sluice_wait(runtime_, pending, 0));
  std::atomic<bool> calls{false};
  std::thread other([&] {
    calls = true;
    EXPECT_NE(SLUICE_OK, sluice_wait(runtime_, pending, 100));
  });
  while (!calls) std::this_thread::yield();
  std::this_thread::sleep_for(
      std::chrono::milliseconds(20));  // most likely it is in the call by now
  ASSERT_EQ(SLUICE_OK, sluice_runtime_destroy(runtime_)) << Error();
  EXPECT_EQ(1, given_back_);
  other.join();
}

TEST_F(SuppliedHbmTest, TooLittleIsRefusedAndStaysTheCallers) {
  size_ = 4096;
  EXPECT_EQ(SLUICE_RESOURCE_EXHAUSTED, Create());
  EXPECT_THAT(Error(), HasSubstr("the hbm budget of"));
  EXPECT_EQ(0, given_back_);
}

TEST_F(SuppliedHbmTest, MemoryOfAnotherDeviceIsRefusedAndStaysTheCallers) {
  tensor_.dl_tensor.device = {.device_type = kDlCuda, .device_id = 0};
  EXPECT_EQ(SLUICE_INVALID_ARGUMENT, Create());
  EXPECT_THAT(Error(), HasSubstr("is on DLPack device (2, 0), but (1, 0) is used"));
  EXPECT_EQ(0, given_back_);
}

TEST_F(SuppliedHbmTest, UnalignedMemoryIsRefused) {
  tensor_.dl_tensor.byte_offset = 1;
  size_ -= 256;
  EXPECT_EQ(SLUICE_INVALID_ARGUMENT, Create());
  EXPECT_THAT(Error(), HasSubstr("must be aligned to 256 bytes"));
}

}  // namespace
}  // namespace sluice
