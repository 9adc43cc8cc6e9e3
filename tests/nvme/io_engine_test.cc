// What every IoEngine promises, the simulated one included.

#include "nvme/io_engine.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <random>
#include <thread>

#include "fmt/format.h"
#include "tests/nvme/engine_fixture.h"

namespace sluice {
namespace {

using testing::AllOf;
using testing::HasSubstr;

class IoEngineTest : public EngineFixture {
 protected:
  void SetUp() override {
    EngineFixture::SetUp();
    if (!IsSkipped()) Start();
  }

  // `n` operations of 64 KiB, side by side in file 0 and in the arena.
  std::vector<IoOp> SideBySide(IoKind kind, size_t n) {
    std::vector<IoOp> ops;
    for (size_t i = 0; i < n; ++i) {
      ops.push_back(
          Op(kind, 0, static_cast<int64_t>(i << 16), arena_.view().subspan(i << 16, 1 << 16)));
    }
    return ops;
  }
};

INSTANTIATE_TEST_SUITE_P(All, IoEngineTest,
                         testing::Values(EngineName::kIoUring, EngineName::kLibaio,
                                         EngineName::kThreads, EngineName::kSimulated),
                         NameOf);

TEST_P(IoEngineTest, TakesNoMoreThanItsLimitUntilSomeAreHandedOut) {
  std::vector<IoOp> ops = SideBySide(IoKind::kWrite, 10);
  std::vector<IoOp*> todo;
  for (IoOp& op : ops) todo.push_back(&op);
  std::span<IoOp*> left(todo);
  EXPECT_EQ(engine_->Submit({}), 0u);
  ASSERT_EQ(engine_->Submit(left), 4u);
  EXPECT_EQ(engine_->in_flight(), 4u);
  left = left.subspan(4);
  size_t ended = 0;
  while (!left.empty()) {
    EXPECT_EQ(engine_->Submit(left), 0u);
    IoOp* one[1];
    while (engine_->Poll(one, kForever) == 0) {
    }
    ++ended;
    EXPECT_EQ(engine_->in_flight(), 3u);
    EXPECT_EQ(engine_->Submit(left), 1u);
    left = left.subspan(1);
  }
  while (ended < ops.size()) ended += Next().size();
  EXPECT_EQ(engine_->in_flight(), 0u);
  for (const IoOp& op : ops) EXPECT_TRUE(op.status.ok()) << op.status;
}

// Random transfers of odd numbers of pages, each place of a file used by one at a time, against a
// copy of the files in RAM.
TEST_P(IoEngineTest, ReadsBackWhatWasWritten) {
  constexpr size_t kPlaces = 24;  // 12 in each file
  constexpr size_t kPlace = 256 << 10;
  struct Place {
    IoOp op;
    size_t pages = 0;  // that were written last
    std::vector<std::byte> content;
    bool busy = false;
  };
  std::vector<Place> places(kPlaces);
  std::mt19937 random(7);
  const auto buffer = [&](size_t p) { return arena_.view().subspan(p * kPlace, kPlace); };
  size_t reads = 0;
  for (int i = 0; i < 1500 || engine_->in_flight() > 0; ++i) {
    const size_t p = random() % kPlaces;
    Place& place = places[p];
    if (i < 1500 && !place.busy) {
      const bool read = place.pages > 0 && random() % 2 == 0;
      if (!read) {
        place.pages = std::array<size_t, 5>{1, 3, 7, 13, 63}[random() % 5];
        FillRandom(buffer(p).first(place.pages * 4096), random());
        place.content.assign(buffer(p).begin(),
                             buffer(p).begin() + static_cast<ptrdiff_t>(place.pages * 4096));
      } else {
        std::ranges::fill(buffer(p), std::byte{0xEE});
      }
      place.op = Op(read ? IoKind::kRead : IoKind::kWrite, static_cast<uint32_t>(p % 2),
                    static_cast<int64_t>(p / 2 * kPlace), buffer(p).first(place.pages * 4096));
      IoOp* op = &place.op;
      place.busy = engine_->Submit({&op, 1}) == 1;
      if (!place.busy && !read) place.pages = 0;  // it stays as it was, which is not kept here
      if (place.busy) continue;
    }
    if (engine_->in_flight() == 0) continue;
    for (IoOp* op : Next()) {
      ASSERT_TRUE(op->status.ok()) << op->status;
      ASSERT_EQ(op->transferred.size(), op->memory.size());
      const auto done = std::ranges::find_if(places, [&](const Place& x) { return &x.op == op; });
      done->busy = false;
      if (op->kind != IoKind::kRead) continue;
      ++reads;
      ASSERT_TRUE(SameBytes(op->memory, done->content));
    }
  }
  EXPECT_GT(reads, 100u);
}

TEST_P(IoEngineTest, NoWaitReturnsAtOnce) {
  std::vector<IoOp*> done(4);
  const TimePoint before = clock().Now();
  EXPECT_EQ(engine_->Poll(done, kNoWait), 0u);
  if (simulated()) {
    EXPECT_EQ(clock().Now(), before);
  }
}

TEST_P(IoEngineTest, WaitsUntilTheDeadlineIfNothingEnds) {
  std::vector<IoOp*> done(4);
  for (int i = 0; i < 3; ++i) {
    const Deadline deadline = clock().Now() + Nanos(2'000'000);
    EXPECT_EQ(engine_->Poll(done, deadline), 0u);
    EXPECT_GE(clock().Now(), deadline);
  }
}

TEST_P(IoEngineTest, PollsThatDontWaitFindWhatHasEnded) {
  std::vector<IoOp> ops = SideBySide(IoKind::kWrite, 20);
  for (IoOp& op : ops) {
    IoOp* todo = &op;
    ASSERT_EQ(engine_->Submit({&todo, 1}), 1u);
    std::vector<IoOp*> done(4);
    while (engine_->Poll(done, kNoWait) == 0) LetTimePass();
    EXPECT_EQ(done[0], &op);
    EXPECT_TRUE(op.status.ok()) << op.status;
  }
}

TEST_P(IoEngineTest, AWakeEndsTheNextPollThatWaitsAndNoOther) {
  std::vector<IoOp*> done(4);
  engine_->Wake();
  engine_->Wake();
  EXPECT_EQ(engine_->Poll(done, kNoWait), 0u);
  EXPECT_EQ(engine_->Poll(done, kForever), 0u);  // returns
  const Deadline deadline = clock().Now() + Nanos(2'000'000);
  EXPECT_EQ(engine_->Poll(done, deadline), 0u);
  EXPECT_GE(clock().Now(), deadline);
}

TEST_P(IoEngineTest, AWakeFromElsewhereEndsAPollThatWaits) {
  std::vector<IoOp*> done(4);
  for (int i = 0; i < 200; ++i) {
    if (simulated()) {
      world_.At(world_.Now() + Nanos(1000), [this] { engine_->Wake(); });
      EXPECT_EQ(engine_->Poll(done, kForever), 0u);
    } else {
      std::thread other([this] { engine_->Wake(); });
      EXPECT_EQ(engine_->Poll(done, kForever), 0u);
      other.join();
    }
  }
}

TEST_P(IoEngineTest, AWakeLosesNoOperation) {
  std::vector<IoOp> ops = SideBySide(IoKind::kWrite, 60);
  std::thread other([this] {
    for (int i = 0; i < 500 && !simulated(); ++i) engine_->Wake();
  });
  RunAll(ops);
  other.join();
  for (const IoOp& op : ops) EXPECT_TRUE(op.status.ok()) << op.status;
}

TEST_P(IoEngineTest, AFailureNamesItsOperationAndHarmsNoOther) {
  std::vector<IoOp> ops = SideBySide(IoKind::kWrite, 4);
  const int64_t end = kFileSize.value();
  ops.push_back(Op(IoKind::kRead, 9, 8192, arena_.view().subspan(1 << 20, 4096)));
  ops.push_back(Op(IoKind::kRead, 1, end, arena_.view().subspan(2 << 20, 4096)));
  ops.push_back(Op(IoKind::kRead, 1, end - 4096, arena_.view().subspan(3 << 20, 8192)));
  ops.push_back(Op(IoKind::kRead, 1, -4096, arena_.view().subspan(4 << 20, 4096)));
  std::rotate(ops.begin(), ops.begin() + 5, ops.end());
  RunAll(ops);
  for (const IoOp& op : ops) {
    const bool good = op.kind == IoKind::kWrite;
    EXPECT_EQ(op.status.ok(), good) << op.status;
    EXPECT_EQ(op.transferred.size() == op.memory.size(), good);
    EXPECT_LE(op.submitted, op.completed);
    EXPECT_LE(op.completed, clock().Now());
    if (good) continue;
    EXPECT_THAT(std::string(Message(op.status)),
                HasSubstr(fmt::format("reading {} bytes at {} of swap file {}", op.memory.size(),
                                      op.offset.value(), op.file.value())));
  }
  // They may be used again.
  std::vector<IoOp> again = SideBySide(IoKind::kRead, 4);
  for (size_t i = 0; i < again.size(); ++i) {
    ops[i] = again[i];
    RunOne(&ops[i]);
    EXPECT_TRUE(ops[i].status.ok()) << ops[i].status;
  }
}

TEST_P(IoEngineTest, UnalignedTransfersAreRefused) {
  if (alignment() == Bytes(1)) GTEST_SKIP() << "plain I/O here, which any alignment will do for";
  const auto a = static_cast<size_t>(alignment().value());
  const auto at = [a](size_t n) { return static_cast<int64_t>(n * a); };
  std::vector<IoOp> ops = {
      Op(IoKind::kWrite, 0, 0, arena_.view().subspan(a / 2, 2 * a)),      // memory
      Op(IoKind::kRead, 1, at(8) + 1, arena_.view().first(2 * a)),        // offset
      Op(IoKind::kWrite, 1, 0, arena_.view().subspan(4 * a, 2 * a - 1)),  // length
      Op(IoKind::kWrite, 1, at(16), arena_.view().subspan(8 * a, a))};
  RunAll(ops);
  for (size_t i = 0; i < 3; ++i) {
    EXPECT_TRUE(absl::IsInvalidArgument(ops[i].status)) << ops[i].status;
    EXPECT_THAT(std::string(Message(ops[i].status)), HasSubstr("EINVAL"));
    EXPECT_EQ(ops[i].transferred, Bytes(0));
  }
  EXPECT_TRUE(ops[3].status.ok()) << ops[3].status;
}

TEST_P(IoEngineTest, HandsOutInOrderOfCompletion) {
  std::vector<IoOp> ops = SideBySide(IoKind::kWrite, 40);
  std::vector<IoOp*> todo;
  for (IoOp& op : ops) todo.push_back(&op);
  size_t started = 0;
  size_t ended = 0;
  TimePoint latest{0};
  while (ended < ops.size()) {
    started += engine_->Submit(std::span(todo).subspan(started));
    for (const IoOp* op : Next()) {
      EXPECT_LE(op->submitted, op->completed);
      // Threads take the time before they queue for being handed out.
      if (GetParam() != EngineName::kThreads) {
        EXPECT_LE(latest, op->completed);
      }
      latest = std::max(latest, op->completed);
      ++ended;
    }
  }
}

TEST_P(IoEngineTest, TakesTimesFromItsClock) {
  const TimePoint before = clock().Now();
  std::vector<IoOp> ops = SideBySide(IoKind::kWrite, 4);
  RunAll(ops);
  for (const IoOp& op : ops) {
    EXPECT_LE(before, op.submitted);
    EXPECT_LT(op.submitted, op.completed);
    EXPECT_LE(op.completed, clock().Now());
  }
}

TEST_P(IoEngineTest, MayBeUsedByAnotherThreadThanMadeIt) {
  std::vector<IoOp> ops = SideBySide(IoKind::kWrite, 20);
  std::thread owner([&] { RunAll(ops); });
  owner.join();
  for (const IoOp& op : ops) EXPECT_TRUE(op.status.ok()) << op.status;
}

TEST_P(IoEngineTest, MemoryOutsideTheArenasWorksToo) {
  AlignedBuffer outside(64 << 10);
  FillRandom(outside.view(), 3);
  IoOp write = Op(IoKind::kWrite, 1, 1 << 20, outside.view());
  RunOne(&write);
  ASSERT_TRUE(write.status.ok()) << write.status;
  IoOp read = Op(IoKind::kRead, 1, 1 << 20, arena_.view().first(64 << 10));
  RunOne(&read);
  ASSERT_TRUE(read.status.ok()) << read.status;
  EXPECT_TRUE(SameBytes(read.memory, outside.view()));
}

TEST_P(IoEngineTest, CloseWaitsForWhatIsInFlight) {
  std::vector<IoOp> ops;
  for (size_t i = 0; i < 4; ++i) {
    ops.push_back(Op(IoKind::kWrite, 0, static_cast<int64_t>(i << 20),
                     arena_.view().subspan(i << 20, 1 << 20)));
  }
  std::vector<IoOp*> todo;
  for (IoOp& op : ops) todo.push_back(&op);
  ASSERT_EQ(engine_->Submit(todo), 4u);
  const absl::Status closed = engine_->Close();
  EXPECT_TRUE(closed.ok()) << closed;
  EXPECT_EQ(engine_->in_flight(), 0u);
  for (const IoOp& op : ops) EXPECT_EQ(op.transferred.size(), op.memory.size());
  EXPECT_TRUE(engine_->Close().ok());
}

TEST_P(IoEngineTest, CloseReturnsAFailureThatNobodySaw) {
  IoOp good = Op(IoKind::kWrite, 0, 0, arena_.view().first(4096));
  IoOp bad = Op(IoKind::kRead, 0, kFileSize.value(), arena_.view().subspan(4096, 4096));
  IoOp* ops[] = {&good, &bad};
  ASSERT_EQ(engine_->Submit(ops), 2u);
  const absl::Status closed = engine_->Close();
  EXPECT_THAT(std::string(Message(closed)),
              AllOf(HasSubstr("reading 4096 bytes"), HasSubstr("4194304")));
  EXPECT_TRUE(engine_->Close().ok());
}

TEST_P(IoEngineTest, MayBeDestroyedIdleAndUnused) { engine_.reset(); }

// Views of a runtime's memory may die, and wake, while the runtime ends.
TEST_P(IoEngineTest, AWakeAfterCloseReachesNobodyElse) {
  ASSERT_TRUE(engine_->Close().ok());
  std::array<int, 8> bystanders;  // one of them has the number of whatever the engine gave back
  for (int& fd : bystanders) fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  engine_->Wake();
  for (const int fd : bystanders) {
    uint64_t count = 0;
    EXPECT_EQ(read(fd, &count, sizeof(count)), -1) << "woken " << count << " times";
    close(fd);
  }
}

TEST_P(IoEngineTest, SaysWhatItIs) {
  const char* expected[] = {"io_uring: registered files, ", "libaio: 4 in flight, 2 per ",
                            "threads: 4 of pread and pwrite", "simulated"};
  EXPECT_THAT(engine_->description(), HasSubstr(expected[static_cast<size_t>(GetParam())]));
}

}  // namespace
}  // namespace sluice
