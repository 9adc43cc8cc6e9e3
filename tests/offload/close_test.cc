// A runtime over real seams is closed in bounded time whatever hangs in it: a worker, a stream of
// the device, a drive under each I/O engine. Afterwards the process makes another and exits, and
// when what hung ends after all, everything is given back.

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/socket.h>
#include <unistd.h>

#include <atomic>
#include <csignal>
#include <cstdlib>
#include <filesystem>
#include <latch>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "offload/abi/c_api_internal.h"
#include "offload/run/factory.h"
#include "tests/nvme/temp_dir.h"
#include "tests/offload/trainer.h"

namespace sluice {
namespace {

using ::testing::HasSubstr;
using testing::OddModel;
using testing::Trainer;
using testing::TrainerOptions;

// What keeps a thread until it is opened, and says that one has come.
class Gate {
 public:
  void Pass() {
    reached_ = true;
    open_.wait();
  }
  void Open() { open_.count_down(); }
  bool reached() const { return reached_; }

 private:
  std::latch open_{1};
  std::atomic<bool> reached_{false};
};

// Tasks that wait at a gate before they do what they were to do.
class HangingExecutor final : public Executor {
 public:
  HangingExecutor(std::unique_ptr<Executor> real, Gate* gate)
      : real_(std::move(real)), gate_(gate) {}
  void Submit(Task* task) override {
    if (submitted_++ != 3) return real_->Submit(task);
    hanging_.task = task;
    hanging_.gate = gate_;
    real_->Submit(&hanging_);
  }
  void HelpUntil(absl::FunctionRef<bool()> done, std::chrono::milliseconds timeout) override {
    real_->HelpUntil(done, timeout);
  }
  void WakeHelpers() override { real_->WakeHelpers(); }
  int concurrency() const override { return real_->concurrency(); }
  size_t pending() const override { return real_->pending(); }
  void Abandon() override { real_->Abandon(); }
  std::string description() const override { return real_->description(); }

 private:
  struct Hanging final : Task {
    void Run() override {
      gate->Pass();
      task->Run();
    }
    Task* task = nullptr;
    Gate* gate = nullptr;
  };
  Hanging hanging_;
  const std::unique_ptr<Executor> real_;
  Gate* const gate_;
  int submitted_ = 0;
};

// A device one of whose streams waits at a gate in the middle of an operation.
class HangingDevice final : public Device {
 public:
  HangingDevice(std::unique_ptr<Device> real, StreamKind stream, Gate* gate)
      : stream_(stream), real_(std::move(real)) {
    hanging_.gate = gate;
  }
  absl::StatusOr<Arena> MakeHbmArena(Bytes size) override { return real_->MakeHbmArena(size); }
  void Enqueue(DeviceOp* op) override {
    if (op->stream == stream_ && enqueued_++ == 3) {
      hanging_.work = op->work;
      op->work = &hanging_;
    }
    real_->Enqueue(op);
  }
  StreamCounts pending() const override { return real_->pending(); }
  void Abandon() override { real_->Abandon(); }
  bool host_addressable() const override { return real_->host_addressable(); }
  absl::Status RegisterHost(MemoryView memory) override { return real_->RegisterHost(memory); }
  absl::Status CheckStream(CallerStream stream) override { return real_->CheckStream(stream); }
  absl::StatusOr<Fence> RecordFence(CallerStream stream) override {
    return real_->RecordFence(stream);
  }
  void OrderAfter(StreamKind stream, const Fence& fence) override {
    real_->OrderAfter(stream, fence);
  }
  bool orders_callers() const override { return real_->orders_callers(); }
  absl::StatusOr<Fence> RecordEnd(StreamKind stream) override { return real_->RecordEnd(stream); }
  absl::Status OrderCallerAfter(CallerStream stream, const Fence& fence) override {
    return real_->OrderCallerAfter(stream, fence);
  }
  DlDevice dl_device() const override { return real_->dl_device(); }
  std::string description() const override { return real_->description(); }

 private:
  struct Hanging final : DeviceWork {
    void Launch(void* stream) override {
      gate->Pass();
      if (work != nullptr) work->Launch(stream);
    }
    DeviceWork* work = nullptr;
    Gate* gate = nullptr;
  };
  Hanging hanging_;
  const StreamKind stream_;
  const std::unique_ptr<Device> real_;
  int enqueued_ = 0;
};

// A socket in the place of a swap file: what is written stays away until somebody reads, and what
// is read until somebody writes. Without room from the start.
class FullPipe {
 public:
  FullPipe() {
    SLUICE_CHECK(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, ends_) == 0);
    const std::vector<char> bytes(1 << 12);
    while (write(ends_[1], bytes.data(), bytes.size()) > 0) {
    }
    SLUICE_CHECK(fcntl(ends_[1], F_SETFL, 0) == 0);
  }
  ~FullPipe() {
    close(ends_[0]);
    close(ends_[1]);
  }
  // With what an engine reads when it is made.
  void Replace(const DirectFile& file) {
    const std::vector<char> bytes(static_cast<size_t>(file.alignment().value()));
    SLUICE_CHECK(write(ends_[0], bytes.data(), bytes.size()) == std::ssize(bytes));
    SLUICE_CHECK(dup2(ends_[1], file.fd()) == file.fd());
  }
  // Nobody reads any more: whoever writes gets an error.
  void Open() { close(std::exchange(ends_[0], -1)); }

 private:
  int ends_[2];
};

enum class Hang { kWorker, kToDevice, kFromDevice, kCompute, kUring, kLibaio, kThreads };
struct Case {
  Hang hang;
  const char* name;
  const char* words;
};

// For the next call of the thread engine, which ld's --wrap brings here.
std::atomic<Gate*> write_gate{nullptr};

}  // namespace
}  // namespace sluice

// A process that exits while something hangs leaves threads behind.
extern "C" __attribute__((visibility("default"))) const char* __tsan_default_options() {
  return "report_thread_leaks=0";
}

extern "C" ssize_t __real_pwrite(int fd, const void* data, size_t size, off_t offset);
extern "C" ssize_t __wrap_pwrite(int fd, const void* data, size_t size, off_t offset) {
  if (sluice::Gate* gate = sluice::write_gate.exchange(nullptr)) gate->Pass();
  return __real_pwrite(fd, data, size, offset);
}

namespace sluice {
namespace {

class CloseTest : public ::testing::TestWithParam<Case> {
 protected:
  void SetUp() override {
    std::signal(SIGPIPE, SIG_IGN);
    if (GetParam().hang != Hang::kUring && GetParam().hang != Hang::kLibaio) return;
    const auto engine =
        GetParam().hang == Hang::kUring ? IoEngineKind::kIoUring : IoEngineKind::kLibaio;
    if (const auto probe = MakeIoEngine(engine, {}, {}, {}, &clock_); !probe.ok())
      GTEST_SKIP() << probe.status();
  }

  RuntimeConfig Config() const {
    RuntimeConfig config;
    config.workers = 2;
    config.chunk_elements = 2 * kCellElements;
    config.types.param = FloatType::kBf16;
    config.types.grad = FloatType::kBf16;
    config.placement.resident_elements_max = 100;
    config.placement.state_buffers = 4;
    config.placement.param_buffers = 4;
    config.budgets = {KiB(400), MiB(1), GiB(1)};
    config.nvme_paths = {dir_.path()};
    config.engine = IoEngineKind::kThreads;
    // Behind a link gradients are copied by the device.
    if (GetParam().hang == Hang::kFromDevice) config.link_bytes_per_second = 100e9;
    if (GetParam().hang == Hang::kCompute) {
      config.placement.lowest_state_tier = Tier::kHbm;
      config.highest_state_tier_on_host = Tier::kHbm;
      config.budgets.hbm = MiB(8);
    }
    return config;
  }

  // As MakeRuntime, with what shall hang in its place.
  absl::StatusOr<std::unique_ptr<OffloadRuntime>> Make() {
    const Hang hang = GetParam().hang;
    RuntimeConfig config = Config();
    if (hang == Hang::kUring) config.engine = IoEngineKind::kIoUring;
    if (hang == Hang::kLibaio) config.engine = IoEngineKind::kLibaio;
    SLUICE_ASSIGN_OR_RETURN(Plan plan, MakePlan(OddModel(), config));
    Seams seams;
    seams.clock = &clock_;
    seams.host_memory = &counted_;
    SLUICE_ASSIGN_OR_RETURN(seams.executor, MakeExecutor(config.workers));
    if (hang == Hang::kWorker)
      seams.executor = std::make_unique<HangingExecutor>(std::move(seams.executor), &gate_);
    SLUICE_ASSIGN_OR_RETURN(seams.device,
                            MakeHostDevice({.link_bytes_per_second = config.link_bytes_per_second},
                                           &clock_, &counted_));
    if (hang >= Hang::kToDevice && hang <= Hang::kCompute) {
      const auto stream = static_cast<StreamKind>(static_cast<int>(hang) - 1);
      seams.device = std::make_unique<HangingDevice>(std::move(seams.device), stream, &gate_);
    }
    SLUICE_ASSIGN_OR_RETURN(const std::vector<Drive> drives, DrivesOf(config));
    seams.segments = SegmentsOf(plan, drives);
    SLUICE_ASSIGN_OR_RETURN(seams.files, CreateSegments(seams.segments));
    seams.make_engine = [this, hang, config](std::span<const MemoryView> arenas,
                                             std::span<const DirectFile> files) {
      if (hang == Hang::kUring || hang == Hang::kLibaio) pipe_.Replace(files[0]);
      if (hang == Hang::kThreads) write_gate = &gate_;
      return MakeIoEngine(config.engine, files, arenas, config.io, &clock_);
    };
    RuntimeOptions options = OptionsOf(config, plan);
    options.close = {.drain = std::chrono::milliseconds(30),
                     .settle = std::chrono::milliseconds(30),
                     .take_down = hang == Hang::kLibaio ? std::chrono::milliseconds(100)
                                                        : std::chrono::seconds(100)};
    return OffloadRuntime::Create(std::move(plan.layout), std::move(plan.placement), options,
                                  std::move(seams));
  }

  TrainerOptions UntilItHangs() {
    TrainerOptions options{.steps = 1};
    options.give_up = [this, pending = 0]() mutable {
      const bool drive = GetParam().hang == Hang::kUring || GetParam().hang == Hang::kLibaio;
      return gate_.reached() || (drive && ++pending == 3);
    };
    return options;
  }
  void Finish() {
    gate_.Open();
    pipe_.Open();
    while (counted_.used() > Bytes(0)) std::this_thread::yield();
  }

  int SwapFiles() const {
    int files = 0;
    for (const auto& entry : std::filesystem::directory_iterator("/proc/self/fd")) {
      std::error_code gone;
      files += std::filesystem::read_symlink(entry.path(), gone).string().starts_with(dir_.path());
    }
    return files;
  }

  const TempDir dir_;
  SteadyClock clock_;
  HugePageResource memory_;
  LimitingResource counted_{&memory_, GiB(1)};
  Gate gate_;
  FullPipe pipe_;
};

INSTANTIATE_TEST_SUITE_P(
    All, CloseTest,
    ::testing::Values(Case{Hang::kWorker, "Worker", "1 tasks of the workers"},
                      Case{Hang::kToDevice, "CopyToTheDevice", "1 copies to the device"},
                      Case{Hang::kFromDevice, "CopyFromTheDevice", "1 copies from the device"},
                      Case{Hang::kCompute, "Computation", "1 computations of the device"},
                      Case{Hang::kUring, "IoUring", " writes of swap file 0 in "},
                      Case{Hang::kLibaio, "Libaio",
                           "a call that the control thread made to a drive"},
                      Case{Hang::kThreads, "IoThreads", "1 writes of swap file 0 in "}),
    [](const ::testing::TestParamInfo<Case>& info) { return std::string(info.param.name); });

TEST_P(CloseTest, SaysWhatHangsAndGivesItBackWhenItHasEnded) {
  absl::StatusOr<std::unique_ptr<OffloadRuntime>> runtime = Make();
  ASSERT_TRUE(runtime.ok()) << runtime.status();
  Trainer trainer(runtime->get(), OddModel(), UntilItHangs());
  EXPECT_TRUE(absl::IsDeadlineExceeded(trainer.Run()));
  const absl::Status closed = OffloadRuntime::Close(*std::move(runtime));
  EXPECT_TRUE(absl::IsUnavailable(closed)) << closed;
  EXPECT_THAT(std::string(Message(closed)), HasSubstr("the runtime was abandoned"));
  EXPECT_THAT(std::string(Message(closed)), HasSubstr(GetParam().words));
  EXPECT_GT(counted_.used(), Bytes(0)) << "what hangs may touch it";
  if (GetParam().hang <= Hang::kCompute) {
    EXPECT_EQ(0, SwapFiles()) << "no drive hangs";
  }
  {
    absl::StatusOr<std::unique_ptr<OffloadRuntime>> next = MakeRuntime(OddModel(), Config());
    ASSERT_TRUE(next.ok()) << next.status();
    EXPECT_EQ(Trainer(next->get(), OddModel(), {.steps = 1}).Run(), absl::OkStatus());
    EXPECT_EQ(OffloadRuntime::Close(*std::move(next)), absl::OkStatus());
  }
  Finish();
  EXPECT_EQ(0, SwapFiles());
}

TEST_P(CloseTest, ThroughTheCAbiOthersGetTheirErrors) {
  absl::StatusOr<std::unique_ptr<OffloadRuntime>> runtime = Make();
  ASSERT_TRUE(runtime.ok()) << runtime.status();
  Trainer trainer(runtime->get(), OddModel(), UntilItHangs());
  EXPECT_TRUE(absl::IsDeadlineExceeded(trainer.Run()));
  const Ticket open = (*runtime)->Drain();
  const sluice_runtime handle = c_api::AddRuntime(*std::move(runtime));
  std::atomic<sluice_status> waited{SLUICE_OK};
  std::thread waiter([&] {
    do {
      waited = sluice_wait(handle, open, 100);
    } while (waited == SLUICE_PENDING);
  });
  EXPECT_EQ(SLUICE_UNAVAILABLE, sluice_runtime_destroy(handle));
  EXPECT_THAT(sluice_last_error(), HasSubstr(GetParam().words));
  waiter.join();
  EXPECT_EQ(SLUICE_INVALID_ARGUMENT, waited);
  EXPECT_EQ(SLUICE_INVALID_ARGUMENT, sluice_runtime_destroy(handle));
  Finish();
}

using CloseDeathTest = CloseTest;
INSTANTIATE_TEST_SUITE_P(
    All, CloseDeathTest,
    ::testing::Values(Case{Hang::kWorker, "Worker", ""}, Case{Hang::kCompute, "Computation", ""},
                      Case{Hang::kUring, "IoUring", ""}, Case{Hang::kLibaio, "Libaio", ""},
                      Case{Hang::kThreads, "IoThreads", ""}),
    [](const ::testing::TestParamInfo<Case>& info) { return std::string(info.param.name); });

TEST_P(CloseDeathTest, TheProcessExitsCleanlyWhileItHangs) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  const auto body = [this] {
    absl::StatusOr<std::unique_ptr<OffloadRuntime>> runtime = Make();
    Trainer trainer(runtime->get(), OddModel(), UntilItHangs());
    const absl::Status trained = trainer.Run();
    const absl::Status closed = OffloadRuntime::Close(*std::move(runtime));
    std::exit(absl::IsDeadlineExceeded(trained) && absl::IsUnavailable(closed) ? 0 : 1);
  };
  EXPECT_EXIT(body(), ::testing::ExitedWithCode(0), "");
}

}  // namespace
}  // namespace sluice
