// What the CUDA device promises: order, fences, bytes, errors by name.

#include "core/cuda_device.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <cstring>
#include <functional>
#include <memory>
#include <thread>
#include <utility>
#include <vector>

#include "core/memory_resource.h"
#include "tests/core/stream_order_conformance.h"
#include "tests/gpu/cuda_caller.h"
#include "tests/gpu/gate.h"

namespace sluice {
namespace {

using testing::CudaStream;
using testing::Gate;
using ::testing::HasSubstr;

// An operation whose completion is counted.
struct Op final : Event {
  void Handle() override { done = true; }
  DeviceOp op;
  bool done = false;
};

class CudaDeviceTest : public ::testing::Test {
 protected:
  void SetUp() override { Make({}); }

  void Make(CudaDeviceOptions options) {
    device_.reset();
    absl::StatusOr<std::unique_ptr<Device>> made = MakeCudaDevice(options, &clock_);
    ASSERT_TRUE(made.ok()) << made.status();
    device_ = *std::move(made);
  }

  void Start(Op* op, StreamKind stream, ConstMemoryView from, std::byte* to,
             const Fence* after = nullptr) {
    op->op.stream = stream;
    op->op.from = from;
    op->op.to = to;
    if (after != nullptr) device_->OrderAfter(stream, *after);
    op->op.inbox = &inbox_;
    op->op.event = op;
    device_->Enqueue(&op->op);
  }
  void Wait(Op* op) {
    while (!op->done) {
      if (!inbox_.HandleAll()) std::this_thread::yield();
    }
  }
  // Copies and waits.
  absl::Status Copy(StreamKind stream, ConstMemoryView from, std::byte* to) {
    Op op;
    Start(&op, stream, from, to);
    Wait(&op);
    return op.op.status;
  }

  MemoryView Host(Bytes size) {
    absl::StatusOr<Arena> arena = Arena::Create(&memory_, size);
    SLUICE_CHECK(arena.ok());
    arenas_.push_back(*std::move(arena));
    return arenas_.back().memory();
  }
  std::byte* Hbm(Bytes size) {
    absl::StatusOr<Arena> arena = device_->MakeHbmArena(size);
    SLUICE_CHECK_MSG(arena.ok(), Message(arena.status()));
    arenas_.push_back(*std::move(arena));
    return arenas_.back().memory().data();
  }
  static void Fill(MemoryView memory, uint64_t seed) {
    for (size_t i = 0; i < memory.size(); ++i)
      memory[i] = static_cast<std::byte>(testing::Mix(seed + i / 8) >> (i % 8 * 8));
  }

  SteadyClock clock_;
  HugePageResource memory_;
  std::vector<Arena> arenas_;
  Inbox inbox_;
  std::unique_ptr<Device> device_;
};

TEST_F(CudaDeviceTest, BytesComeBackAsTheyWent) {
  const MemoryView out = Host(MiB(3)), in = Host(MiB(3));
  std::byte* hbm = Hbm(MiB(3));
  ASSERT_TRUE(device_->RegisterHost(out).ok());
  Fill(out, 1);
  for (size_t size : {size_t{1}, size_t{2}, size_t{4095}, size_t{4097}, out.size()}) {
    std::memset(in.data(), 0, in.size());
    ASSERT_TRUE(Copy(StreamKind::kHostToDevice, out.first(size), hbm).ok());
    ASSERT_TRUE(Copy(StreamKind::kDeviceToHost, {hbm, size}, in.data()).ok());
    ASSERT_EQ(0, std::memcmp(out.data(), in.data(), size)) << size;
  }
}

TEST_F(CudaDeviceTest, AStreamKeepsTheOrderOfEnqueue) {
  constexpr int kOps = 64;
  const MemoryView host = Host(MiB(kOps)), in = Host(MiB(1));
  std::byte* hbm = Hbm(MiB(1));
  ASSERT_TRUE(device_->RegisterHost(host).ok());
  Fill(host, 2);
  std::vector<Op> ops(kOps);
  for (int i = 0; i < kOps; ++i) {
    Start(&ops[static_cast<size_t>(i)], StreamKind::kHostToDevice,
          host.subspan(static_cast<size_t>(i) << 20, 1 << 20), hbm);
  }
  for (Op& op : ops) Wait(&op);
  for (size_t i = 1; i < ops.size(); ++i) {
    ASSERT_TRUE(ops[i].op.status.ok());
    EXPECT_GE(ops[i].op.finished, ops[i - 1].op.finished);
    EXPECT_GE(ops[i].op.finished, ops[i].op.started);
  }
  ASSERT_TRUE(Copy(StreamKind::kDeviceToHost, {hbm, size_t{1} << 20}, in.data()).ok());
  EXPECT_EQ(0, std::memcmp(in.data(), host.data() + (size_t{kOps - 1} << 20), 1 << 20));
}

TEST_F(CudaDeviceTest, AnOperationWaitsForItsFenceAndOtherStreamsDoNot) {
  const MemoryView host = Host(MiB(1)), in = Host(MiB(1));
  std::byte* hbm = Hbm(MiB(2));
  // Registered: enqueuing a copy of pageable memory may wait for the stream.
  ASSERT_TRUE(device_->RegisterHost(host).ok());
  ASSERT_TRUE(device_->RegisterHost(in).ok());
  Fill(host, 3);
  Gate gate;
  CudaStream caller;
  gate.HoldUp(caller.get());
  absl::StatusOr<Fence> fence = device_->RecordFence(caller.caller());
  ASSERT_TRUE(fence.ok()) << fence.status();
  Op late;
  Start(&late, StreamKind::kDeviceToHost, {hbm + (1 << 20), size_t{1} << 20}, in.data(), &*fence);
  ASSERT_TRUE(Copy(StreamKind::kHostToDevice, host, hbm + (1 << 20)).ok());
  inbox_.HandleAll();
  EXPECT_FALSE(late.done);
  EXPECT_FALSE(fence->Complete());
  gate.Open();
  Wait(&late);
  EXPECT_TRUE(late.op.status.ok());
  EXPECT_TRUE(fence->Complete());
  EXPECT_EQ(0, std::memcmp(in.data(), host.data(), host.size()));
}

TEST_F(CudaDeviceTest, AnOperationWithoutACopyOnlyWaitsForItsFence) {
  Gate gate;
  CudaStream caller;
  gate.HoldUp(caller.get());
  absl::StatusOr<Fence> fence = device_->RecordFence(caller.caller());
  ASSERT_TRUE(fence.ok()) << fence.status();
  Op op;
  Start(&op, StreamKind::kCompute, {}, nullptr, &*fence);
  inbox_.HandleAll();
  EXPECT_FALSE(op.done);
  EXPECT_FALSE(fence->Complete());
  gate.Open();
  Wait(&op);
  EXPECT_TRUE(op.op.status.ok());
}

TEST_F(CudaDeviceTest, FencesAreUsedAgain) {
  CudaStream caller;
  for (int i = 0; i < 1000; ++i) {
    absl::StatusOr<Fence> fence = device_->RecordFence(caller.caller());
    ASSERT_TRUE(fence.ok()) << fence.status();
    ASSERT_EQ(fence->point(), 0u);
  }
}

TEST_F(CudaDeviceTest, FencesOutliveTheirDevice) {
  CudaStream caller;
  absl::StatusOr<Fence> fence = device_->RecordFence(caller.caller());
  ASSERT_TRUE(fence.ok()) << fence.status();
  device_.reset();
  caller.Synchronize();
  EXPECT_TRUE(fence->Complete());
}

TEST_F(CudaDeviceTest, TheDefaultStreamHasFencesToo) {
  absl::StatusOr<Fence> fence = device_->RecordFence({});
  ASSERT_TRUE(fence.ok()) << fence.status();
  Op op;
  Start(&op, StreamKind::kCompute, {}, nullptr, &*fence);
  Wait(&op);
  EXPECT_TRUE(fence->Complete());
}

TEST_F(CudaDeviceTest, AStreamThatIsCapturedIsRefusedAndItsCaptureLives) {
  const MemoryView host = Host(MiB(1));
  std::byte* hbm = Hbm(MiB(1));
  CudaStream caller;
  testing::CheckCuda(cudaStreamBeginCapture(caller.get(), cudaStreamCaptureModeGlobal));
  const absl::Status check = device_->CheckStream(caller.caller());
  const absl::StatusOr<Fence> end = device_->RecordEnd(StreamKind::kFetch);
  const absl::Status order =
      end.ok() ? device_->OrderCallerAfter(caller.caller(), *end) : end.status();
  const absl::Status record = device_->RecordFence(caller.caller()).status();
  const absl::Status copy = Copy(StreamKind::kHostToDevice, host, hbm);  // goes on meanwhile
  cudaGraph_t graph = nullptr;
  testing::CheckCuda(cudaStreamEndCapture(caller.get(), &graph));
  testing::CheckCuda(cudaGraphDestroy(graph));
  EXPECT_TRUE(absl::IsFailedPrecondition(check)) << check;
  EXPECT_THAT(std::string(Message(check)), HasSubstr("captured into a CUDA graph"));
  EXPECT_TRUE(absl::IsFailedPrecondition(record)) << record;
  EXPECT_TRUE(absl::IsFailedPrecondition(order)) << order;
  EXPECT_TRUE(copy.ok()) << copy;
  EXPECT_TRUE(device_->CheckStream(caller.caller()).ok());
}

TEST_F(CudaDeviceTest, TheDefaultStreamIsRefusedWhileAStreamThatWaitsForItIsCaptured) {
  cudaStream_t blocking = nullptr;
  testing::CheckCuda(cudaStreamCreate(&blocking));
  testing::CheckCuda(cudaStreamBeginCapture(blocking, cudaStreamCaptureModeThreadLocal));
  const absl::Status implicit = device_->CheckStream({});
  cudaGraph_t graph = nullptr;
  testing::CheckCuda(cudaStreamEndCapture(blocking, &graph));
  testing::CheckCuda(cudaGraphDestroy(graph));
  testing::CheckCuda(cudaStreamDestroy(blocking));
  EXPECT_TRUE(absl::IsFailedPrecondition(implicit)) << implicit;
}

// The CUDA device, and callers of it. Their memory is taken from what was allocated before: to
// allocate may wait for the GPU.
class CudaStreams {
 public:
  class Caller {
   public:
    CallerStream stream() { return stream_.caller(); }
    void Read(const std::byte* from, size_t size, std::byte* to) {
      testing::CheckCuda(cudaMemcpyAsync(to, from, size, cudaMemcpyDeviceToHost, stream_.get()));
    }
    void HoldUp() { gate_.HoldUp(stream_.get()); }
    void Open() { gate_.Open(); }

   private:
    Gate gate_;
    CudaStream stream_;
  };

  Device* device() { return device_.get(); }
  MemoryView Host(size_t size) { return {Take(host_.get(), &host_used_, size), size}; }
  std::byte* Hbm(size_t size) { return Take(hbm_.get(), &hbm_used_, size); }
  Inbox* inbox() { return &inbox_; }
  void HandleUntil(const std::function<bool()>& done) {
    while (!done()) {
      if (!inbox_.HandleAll()) std::this_thread::yield();
    }
  }

 private:
  static constexpr size_t kMemory = size_t{1} << 20;
  static std::byte* Take(std::byte* memory, size_t* used, size_t size) {
    SLUICE_CHECK(*used + size <= kMemory);
    return memory + std::exchange(*used, *used + size);
  }

  SteadyClock clock_;
  const std::shared_ptr<std::byte> host_ = testing::PinnedMemory(kMemory);
  const std::shared_ptr<std::byte> hbm_ = testing::CudaMemory(kMemory);
  size_t host_used_ = 0;
  size_t hbm_used_ = 0;
  Inbox inbox_;
  const std::unique_ptr<Device> device_ = MakeCudaDevice({}, &clock_).value();
};
INSTANTIATE_TYPED_TEST_SUITE_P(Cuda, StreamOrderTest, CudaStreams);

TEST_F(CudaDeviceTest, CopiesCrossTheBordersOfRegisteredPieces) {
  Make({.register_bytes_max = MiB(2)});
  const MemoryView host = Host(MiB(7)), in = Host(MiB(7));
  std::byte* hbm = Hbm(MiB(7));
  ASSERT_TRUE(device_->RegisterHost(host).ok());
  ASSERT_TRUE(device_->RegisterHost(in).ok());
  Fill(host, 4);
  ASSERT_TRUE(Copy(StreamKind::kHostToDevice, host.subspan(3, host.size() - 5), hbm).ok());
  ASSERT_TRUE(Copy(StreamKind::kDeviceToHost, {hbm, host.size() - 5}, in.data() + 1).ok());
  EXPECT_EQ(0, std::memcmp(host.data() + 3, in.data() + 1, host.size() - 5));
}

// The second part of the copy is refused while the first waits for its turn.
TEST_F(CudaDeviceTest, ACopyOfWhichAPartFailsEndsBehindThePartsThatRun) {
  Make({.register_bytes_max = MiB(2)});
  const MemoryView host = Host(MiB(4));
  std::byte* hbm = Hbm(MiB(2));
  ASSERT_TRUE(device_->RegisterHost(host).ok());
  Fill(host, 6);
  CudaStream caller;
  Gate gate;
  gate.HoldUp(caller.get());
  absl::StatusOr<Fence> fence = device_->RecordFence({caller.get()});
  ASSERT_TRUE(fence.ok()) << fence.status();
  Op op;
  Start(&op, StreamKind::kHostToDevice, host, hbm, &*fence);  // to twice as much as there is
  for (int i = 0; i < 1000; ++i) {
    inbox_.HandleAll();
    ASSERT_FALSE(op.done) << "its first part has not run";
    std::this_thread::yield();
  }
  gate.Open();
  Wait(&op);
  EXPECT_FALSE(op.op.status.ok());
  std::vector<std::byte> back(MiB(2).size());
  ASSERT_TRUE(Copy(StreamKind::kDeviceToHost, {hbm, back.size()}, back.data()).ok());
  EXPECT_EQ(0, std::memcmp(host.data(), back.data(), back.size()));
}

TEST_F(CudaDeviceTest, ARefusedRegistrationIsNamedAndCopiesStillWork) {
  const MemoryView host = Host(MiB(1)), in = Host(MiB(1));
  std::byte* hbm = Hbm(MiB(1));
  ASSERT_TRUE(device_->RegisterHost(host).ok());
  const absl::Status again = device_->RegisterHost(host);
  EXPECT_THAT(std::string(Message(again)), HasSubstr("cudaErrorHostMemoryAlreadyRegistered"));
  Fill(host, 5);
  ASSERT_TRUE(Copy(StreamKind::kHostToDevice, host, hbm).ok());
  ASSERT_TRUE(Copy(StreamKind::kDeviceToHost, {hbm, host.size()}, in.data()).ok());
  EXPECT_EQ(0, std::memcmp(host.data(), in.data(), host.size()));
}

TEST_F(CudaDeviceTest, MoreHbmThanThereIsIsRefusedByName) {
  const absl::Status refused = device_->MakeHbmArena(GiB(4096)).status();
  EXPECT_TRUE(absl::IsResourceExhausted(refused)) << refused;
  EXPECT_THAT(std::string(Message(refused)), HasSubstr("cudaErrorMemoryAllocation"));
  EXPECT_TRUE(device_->MakeHbmArena(MiB(1)).ok());
}

TEST_F(CudaDeviceTest, HbmMayBeSuppliedAndIsGivenBackAfterTheLastUse) {
  static std::atomic<int> deleted = 0;
  const std::shared_ptr<std::byte> memory = testing::CudaMemory(1 << 20);
  int64_t shape = 1 << 20;
  DlManagedTensor tensor{};
  tensor.dl_tensor = {.data = memory.get(),
                      .device = {.device_type = kDlCuda, .device_id = 0},
                      .ndim = 1,
                      .dtype = {.code = 1, .bits = 8, .lanes = 1},
                      .shape = &shape};
  tensor.deleter = [](DlManagedTensor*) { ++deleted; };
  auto supplied = std::make_shared<SuppliedMemory>(&tensor);
  Make({.hbm = supplied});
  EXPECT_TRUE(absl::IsResourceExhausted(device_->MakeHbmArena(MiB(2)).status()));
  {
    absl::StatusOr<Arena> arena = device_->MakeHbmArena(KiB(64));
    ASSERT_TRUE(arena.ok()) << arena.status();
    EXPECT_EQ(arena->memory().data(), memory.get());
    supplied->Own();
    supplied.reset();
    device_.reset();
    EXPECT_EQ(deleted, 0);
  }
  EXPECT_EQ(deleted, 1);
}

TEST_F(CudaDeviceTest, DestructionWaitsForWhatIsEnqueued) {
  const MemoryView host = Host(MiB(64)), in = Host(MiB(64));
  std::byte* hbm = Hbm(MiB(64));
  Fill(host, 6);
  ASSERT_TRUE(Copy(StreamKind::kHostToDevice, host, hbm).ok());
  Op op;
  Start(&op, StreamKind::kDeviceToHost, {hbm, host.size()}, in.data());
  device_.reset();
  EXPECT_EQ(0, std::memcmp(host.data(), in.data(), host.size()));
  inbox_.HandleAll();
  EXPECT_TRUE(op.done);
}

TEST_F(CudaDeviceTest, AGpuThatIsNotThereIsRefused) {
  const absl::Status status = MakeCudaDevice({.index = 99}, &clock_).status();
  EXPECT_TRUE(absl::IsInvalidArgument(status)) << status;
  EXPECT_THAT(std::string(Message(status)), HasSubstr("GPU 99"));
}

TEST_F(CudaDeviceTest, ItSaysWhatItIs) {
  EXPECT_THAT(device_->description(), HasSubstr("CUDA: "));
  EXPECT_EQ(device_->dl_device().device_type, kDlCuda);
}

}  // namespace
}  // namespace sluice
