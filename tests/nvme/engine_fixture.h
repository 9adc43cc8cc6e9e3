// tests/nvme/engine_fixture.h
//
// Two files, some memory and one engine over them, of the kind that the test's parameter says.

#ifndef SLUICE_TESTS_NVME_ENGINE_FIXTURE_H_
#define SLUICE_TESTS_NVME_ENGINE_FIXTURE_H_

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "core/clock.h"
#include "core/sim_world.h"
#include "core/status.h"
#include "nvme/io_engine.h"
#include "nvme/sim_io_engine.h"
#include "tests/nvme/temp_dir.h"

namespace sluice {

enum class EngineName { kIoUring, kLibaio, kThreads, kSimulated };

inline std::string NameOf(const testing::TestParamInfo<EngineName>& info) {
  return std::array{"IoUring", "Libaio", "Threads", "Simulated"}[static_cast<size_t>(info.param)];
}

class EngineFixture : public testing::TestWithParam<EngineName> {
 protected:
  static constexpr IoEngine::Limits kLimits{.in_flight_max = 4, .submit_batch_max = 2};
  static constexpr Bytes kFileSize = MiB(4);
  static constexpr Bytes kSimulatedAlignment = Bytes(512);

  void SetUp() override {
    if (!simulated()) {
      const auto probe = MakeIoEngine(kind(), {}, {}, kLimits, &steady_);
      if (!probe.ok()) GTEST_SKIP() << "not here: " << probe.status();
      for (int i = 0; i < 2; ++i) {
        absl::StatusOr<DirectFile> file = DirectFile::CreateUnnamed(dir_.path(), kFileSize);
        ASSERT_TRUE(file.ok()) << file.status();
        files_.push_back(*std::move(file));
      }
    }
  }

  void Start() {
    if (simulated()) {
      engine_ = MakeSimIoEngine({.alignment = kSimulatedAlignment},
                                std::array{kFileSize, kFileSize}, kLimits, &world_);
      return;
    }
    const MemoryView arenas[] = {arena_.view()};
    auto engine = MakeIoEngine(kind(), files_, arenas, kLimits, &steady_);
    SLUICE_CHECK_MSG(engine.ok(), Message(engine.status()));
    engine_ = *std::move(engine);
  }

  IoEngineKind kind() const {  // of a real one
    constexpr IoEngineKind kKinds[] = {IoEngineKind::kIoUring, IoEngineKind::kLibaio,
                                       IoEngineKind::kThreads};
    return kKinds[static_cast<size_t>(GetParam())];
  }
  bool simulated() const { return GetParam() == EngineName::kSimulated; }
  Bytes alignment() const { return simulated() ? kSimulatedAlignment : files_[0].alignment(); }
  const Clock& clock() const {
    return simulated() ? static_cast<const Clock&>(world_) : static_cast<const Clock&>(steady_);
  }
  // What passes by itself where time is real.
  void LetTimePass() {
    if (simulated()) world_.RunNext(kForever);
  }

  static IoOp Op(IoKind kind, uint32_t file, int64_t offset, MemoryView memory) {
    IoOp op;
    op.kind = kind;
    op.file = FileIndex(file);
    op.offset = FileOffset(offset);
    op.memory = memory;
    return op;
  }

  // The next finished operations, at least one.
  std::vector<IoOp*> Next() {
    std::vector<IoOp*> done(kLimits.in_flight_max);
    size_t n = 0;
    while (n == 0) n = engine_->Poll(done, kForever);
    done.resize(n);
    return done;
  }

  // Has all of them done, as many at a time as the engine takes.
  void RunAll(std::span<IoOp> ops) {
    std::vector<IoOp*> todo;
    for (IoOp& op : ops) todo.push_back(&op);
    size_t started = 0;
    size_t ended = 0;
    while (ended < todo.size()) {
      started += engine_->Submit(std::span(todo).subspan(started));
      ended += Next().size();
    }
    EXPECT_EQ(engine_->in_flight(), 0u);
  }

  void RunOne(IoOp* op) { RunAll({op, 1}); }

  TempDir dir_;
  AlignedBuffer arena_{8 << 20};
  std::vector<DirectFile> files_;
  SteadyClock steady_;
  SimWorld world_{1};
  std::unique_ptr<IoEngine> engine_;
};

}  // namespace sluice

#endif  // SLUICE_TESTS_NVME_ENGINE_FIXTURE_H_
