// What the engines make of a kernel that interrupts, refuses, falls short and fails.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cerrno>
#include <random>

#include "nvme/io_engine.h"
#include "tests/nvme/engine_fixture.h"
#include "tests/nvme/faulty_kernel.h"

namespace sluice {
namespace {

using testing::AllOf;
using testing::HasSubstr;
using testing::StartsWith;
using Outcome = FaultyKernel::Outcome;

constexpr int kAttempts = 16;  // in a row, without progress

class FaultyEngineTest : public EngineFixture {
 protected:
  void SetUp() override {
    EngineFixture::SetUp();
    if (IsSkipped()) return;
    if (GetParam() == EngineName::kIoUring && !FaultyKernel::CanFailIoUring()) {
      GTEST_SKIP() << "this kernel's io_uring can't be made to fail (needs Linux 6.10)";
    }
    Start();
  }
  void TearDown() override { FaultyKernel::Reset(); }

  // The next transfers of file 1 end so.
  void Script(std::vector<Outcome> script) {
    FaultyKernel::Script(files_[1].fd(), 1, std::move(script));
  }

  // Writes `size` bytes to file 1 under `writing`, reads them back under `reading`, compares.
  void ExpectRoundTrip(size_t size, const std::vector<Outcome>& writing,
                       const std::vector<Outcome>& reading) {
    const MemoryView from = arena_.view().first(size);
    const MemoryView to = arena_.view().subspan(4 << 20, size);
    FillRandom(from, size);
    IoOp write = Op(IoKind::kWrite, 1, 65536, from);
    Script(writing);
    RunOne(&write);
    EXPECT_TRUE(write.status.ok()) << write.status;
    EXPECT_EQ(FaultyKernel::used(), writing.size());
    IoOp read = Op(IoKind::kRead, 1, 65536, to);
    Script(reading);
    RunOne(&read);
    EXPECT_TRUE(read.status.ok()) << read.status;
    EXPECT_EQ(FaultyKernel::used(), reading.size());
    EXPECT_EQ(read.transferred.size(), size);
    EXPECT_TRUE(SameBytes(from, to));
  }

  // One transfer of file 1 that fails, between two of file 0 that don't.
  IoOp FailBesideGood(IoKind kind) {
    std::vector<IoOp> ops(3);
    for (size_t i = 0; i < ops.size(); ++i) {
      ops[i] = Op(kind, i == 1 ? 1 : 0, static_cast<int64_t>(i << 16),
                  arena_.view().subspan(i << 16, 1 << 16));
    }
    RunAll(ops);
    EXPECT_TRUE(ops[0].status.ok()) << ops[0].status;
    EXPECT_TRUE(ops[2].status.ok()) << ops[2].status;
    EXPECT_FALSE(ops[1].status.ok());
    EXPECT_LT(ops[1].transferred.size(), ops[1].memory.size());
    return ops[1];
  }
};

INSTANTIATE_TEST_SUITE_P(All, FaultyEngineTest,
                         testing::Values(EngineName::kIoUring, EngineName::kLibaio,
                                         EngineName::kThreads),
                         NameOf);

TEST_P(FaultyEngineTest, InterruptedAndBusyTransfersAreTriedAgain) {
  const std::vector<Outcome> faults = {{.error = EINTR}, {.error = EAGAIN}, {.error = EINTR}};
  ExpectRoundTrip(64 << 10, faults, faults);
}

TEST_P(FaultyEngineTest, ShortTransfersAreResumed) {
  const std::vector<Outcome> faults = {{.at_most = 4096}, {.error = EAGAIN}, {.at_most = 12288}};
  ExpectRoundTrip(64 << 10, faults, faults);
}

TEST_P(FaultyEngineTest, ProgressRenewsTheAttempts) {
  std::vector<Outcome> faults;
  for (int i = 0; i < 3; ++i) {
    faults.insert(faults.end(), kAttempts - 1, Outcome{.error = EINTR});
    faults.push_back({.at_most = 4096});
  }
  ExpectRoundTrip(32 << 10, faults, faults);
}

TEST_P(FaultyEngineTest, TriesOnlySoOften) {
  for (const int error : {EINTR, EAGAIN}) {
    Script({{.error = error, .again = true}});
    const IoOp bad = FailBesideGood(IoKind::kWrite);
    EXPECT_EQ(FaultyKernel::used(), static_cast<size_t>(kAttempts));
    EXPECT_TRUE(absl::IsUnavailable(bad.status)) << bad.status;
    EXPECT_THAT(std::string(Message(bad.status)),
                AllOf(HasSubstr("writing 65536 bytes at 65536 of swap file 1"),
                      HasSubstr(strerrorname_np(error))));
  }
}

TEST_P(FaultyEngineTest, ErrorsKeepTheirNamesAndHarmNoOther) {
  for (const IoKind kind : {IoKind::kWrite, IoKind::kRead}) {
    Script({{.error = EIO}});
    EXPECT_TRUE(absl::IsDataLoss(FailBesideGood(kind).status));
    Script({{.at_most = 8192}, {.error = ENOSPC}});
    const IoOp full = FailBesideGood(kind);
    EXPECT_TRUE(absl::IsResourceExhausted(full.status)) << full.status;
    EXPECT_EQ(full.transferred, KiB(8));
    Script({{.error = ENODEV, .again = true}});
    EXPECT_TRUE(absl::IsUnavailable(FailBesideGood(kind).status));
    EXPECT_EQ(FaultyKernel::used(), 1u);  // not tried again
  }
}

TEST_P(FaultyEngineTest, RandomFaultsNeverGiveWrongBytes) {
  std::mt19937 random(11);
  int failed = 0;
  int exact = 0;
  for (int i = 0; i < 150; ++i) {
    SCOPED_TRACE(i);
    const size_t size = 4096 * (1 + random() % 24);
    std::vector<Outcome> script;
    for (uint32_t n = random() % 8; n > 0; --n) {
      const Outcome some[] = {{.error = EINTR},   {.error = EAGAIN}, {.at_most = 4096},
                              {.at_most = 20480}, {.error = EIO},    {}};
      script.push_back(some[random() % std::size(some)]);
    }
    const MemoryView from = arena_.view().first(size);
    const MemoryView to = arena_.view().subspan(4 << 20, size);
    FillRandom(from, random());
    IoOp write = Op(IoKind::kWrite, 1, 0, from);
    IoOp read = Op(IoKind::kRead, 1, 0, to);
    Script(script);
    RunOne(&write);
    RunOne(&read);
    failed += write.status.ok() && read.status.ok() ? 0 : 1;
    if (!write.status.ok() || !read.status.ok()) continue;
    ++exact;
    ASSERT_TRUE(SameBytes(from, to));
  }
  EXPECT_GT(failed, 20);
  EXPECT_GT(exact, 20);
}

TEST_P(FaultyEngineTest, RefusedSubmissionsAreMadeAgain) {
  if (GetParam() == EngineName::kThreads) GTEST_SKIP() << "threads submit nothing to the kernel";
  FaultyKernel::RefuseSubmissions(3, EAGAIN);
  std::vector<IoOp> ops;
  for (size_t i = 0; i < 12; ++i) {
    ops.push_back(Op(IoKind::kWrite, 0, static_cast<int64_t>(i << 16),
                     arena_.view().subspan(i << 16, 1 << 16)));
  }
  RunAll(ops);
  EXPECT_GT(FaultyKernel::submissions(), 3);
  for (const IoOp& op : ops) EXPECT_TRUE(op.status.ok()) << op.status;
}

TEST_P(FaultyEngineTest, CloseSeesRetriesThroughAndReturnsTheFailure) {
  Script({{.error = EAGAIN}, {.at_most = 4096}, {.error = EAGAIN}, {.error = EIO}});
  IoOp op = Op(IoKind::kWrite, 1, 0, arena_.view().first(64 << 10));
  IoOp* todo = &op;
  ASSERT_EQ(engine_->Submit({&todo, 1}), 1u);
  const absl::Status closed = engine_->Close();
  EXPECT_TRUE(absl::IsDataLoss(closed)) << closed;
  EXPECT_THAT(std::string(Message(closed)), HasSubstr("writing 65536 bytes at 0 of swap file 1"));
  EXPECT_EQ(FaultyKernel::used(), 4u);
}

class FaultySetupTest : public testing::Test {
 protected:
  void TearDown() override { FaultyKernel::Reset(); }

  std::string Chosen(const std::string& directory) {
    std::vector<DirectFile> files;
    absl::StatusOr<DirectFile> file = DirectFile::CreateUnnamed(directory, MiB(1));
    SLUICE_CHECK_MSG(file.ok(), Message(file.status()));
    files.push_back(*std::move(file));
    direct_ = files[0].direct();
    const auto engine = MakeIoEngine(IoEngineKind::kAuto, files, {}, {}, &clock_);
    return engine.ok() ? (*engine)->description() : engine.status().ToString();
  }

  TempDir dir_;
  SteadyClock clock_;
  bool direct_ = false;
};

TEST_F(FaultySetupTest, WithoutIoUringItIsLibaioForDirectFilesAndSaysWhy) {
  FaultyKernel::RefuseSetup(EPERM, 0);
  const std::string chosen = Chosen(dir_.path());
  EXPECT_THAT(chosen, AllOf(StartsWith(direct_ ? "libaio" : "threads"), HasSubstr("no io_uring: "),
                            HasSubstr("EPERM")));
}

TEST_F(FaultySetupTest, WithoutIoUringPlainFilesGetThreadsAndItSaysWhy) {
  if (access("/dev/shm", W_OK) != 0) GTEST_SKIP() << "no /dev/shm";
  FaultyKernel::RefuseSetup(EPERM, 0);
  const std::string chosen = Chosen("/dev/shm");
  if (direct_) GTEST_SKIP() << "/dev/shm has direct I/O here";
  EXPECT_THAT(chosen, AllOf(StartsWith("threads"), HasSubstr("no io_uring: "),
                            HasSubstr("no libaio: it would block on plain files (/dev/shm: ")));
}

TEST_F(FaultySetupTest, WithoutBothItIsThreadsAndSaysWhy) {
  FaultyKernel::RefuseSetup(ENOSYS, EAGAIN);
  const std::string chosen = Chosen(dir_.path());
  EXPECT_THAT(chosen, AllOf(StartsWith("threads"), HasSubstr("no io_uring: "), HasSubstr("ENOSYS"),
                            HasSubstr("no libaio: ")));
  if (direct_) {
    EXPECT_THAT(chosen, HasSubstr("raise sysctl fs.aio-max-nr"));
  }
}

TEST_F(FaultySetupTest, AKindThatIsAskedForIsHadOrRefused) {
  FaultyKernel::RefuseSetup(EPERM, ENOSYS);
  const auto uring = MakeIoEngine(IoEngineKind::kIoUring, {}, {}, {}, &clock_);
  EXPECT_TRUE(absl::IsPermissionDenied(uring.status())) << uring.status();
  const auto aio = MakeIoEngine(IoEngineKind::kLibaio, {}, {}, {}, &clock_);
  EXPECT_TRUE(absl::IsUnavailable(aio.status())) << aio.status();
  EXPECT_THAT(std::string(Message(aio.status())), HasSubstr("built without it"));
}

// What a kernel that never takes a submission can't be asked again for ever.
TEST_F(FaultySetupTest, LibaioThatTakesNothingEndsTheTransfer) {
  std::vector<DirectFile> files;
  absl::StatusOr<DirectFile> file = DirectFile::CreateUnnamed(dir_.path(), MiB(1));
  ASSERT_TRUE(file.ok()) << file.status();
  files.push_back(*std::move(file));
  const auto engine = MakeIoEngine(IoEngineKind::kLibaio, files, {}, {}, &clock_);
  if (!engine.ok()) GTEST_SKIP() << engine.status();
  FaultyKernel::RefuseSubmissions(1000, EAGAIN);
  AlignedBuffer buffer(4096);
  IoOp op;
  op.kind = IoKind::kWrite;
  op.memory = buffer.view();
  IoOp* todo[] = {&op};
  ASSERT_EQ((*engine)->Submit(todo), 1u);
  ASSERT_EQ((*engine)->Poll(todo, kForever), 1u);
  EXPECT_TRUE(absl::IsUnavailable(op.status)) << op.status;
  EXPECT_EQ(FaultyKernel::submissions(), kAttempts);
}

}  // namespace
}  // namespace sluice
