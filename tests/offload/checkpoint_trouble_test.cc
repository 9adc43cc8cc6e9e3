// Checkpoints that can't be saved or loaded: ranks that disagree, files that fail, hang or were
// damaged, models that differ. What there was is still there, and whoever can goes on.

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <filesystem>
#include <fstream>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "offload/checkpoint/writer.h"
#include "tests/offload/saved_run.h"
#include "tests/offload/sim_files.h"

namespace sluice::testing {
namespace {

using CheckpointTroubleTest = SavedRunTest;

// Ranks that do not do the same are told so, and can go on to do the same.
TEST_F(CheckpointTroubleTest, RanksThatDisagree) {
  const RanksCase c = Case(2, 1, Where::kStatesOnHost);
  TempDir elsewhere;
  const SaveRequest here = Request("a");
  SaveRequest there = Request("a");
  there.place.directory = elsewhere.path();
  const SaveRequest other_id = Request("a");
  const SaveRequest other_tag = Request("b");
  const SaveRequest last = Request("last");
  OnEachRank(c, [&](uint32_t, Running* running) {
    (void)running->Load();
    (void)running->Train(0, 1);
    EXPECT_TRUE(running->Do(here).ok());
    (void)running->Train(1, 2);
    EXPECT_TRUE(running->Do(there).ok());
  });
  LoadRequest from_there = From("a");
  from_there.directory = elsewhere.path();
  LoadRequest values = From("a");
  values.without_states = true;
  OnEachRank(c, [&](uint32_t rank, Running* running) {
    (void)running->Load();
    const Seen before = running->See();
    const std::pair<CheckpointCall, CheckpointCall> pairs[] = {{other_id, other_tag},
                                                               {other_id, From("a")},
                                                               {From("a"), other_tag},
                                                               {From("a"), values},
                                                               {From("a"), from_there}};
    for (const auto& [one, two] : pairs) {
      const absl::Status status = running->Do(rank == 0 ? one : two);
      EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition) << status.ToString();
      EXPECT_EQ(running->See(), before);
    }
    EXPECT_TRUE(running->Do(last).ok());
    EXPECT_TRUE(running->Do(From("last")).ok());
    EXPECT_EQ(running->See(), before);
  });
}

// What keeps one rank from it keeps all, and changes nothing.
TEST_F(CheckpointTroubleTest, WhatOneCannotSaveNoneHasSaved) {
  const RanksCase c = Case(3, 3, Where::kParamsPinned);
  const SaveRequest good = Request("good");
  const SaveRequest again = Request("good");
  OnEachRank(c, [&](uint32_t rank, Running* running) {
    (void)running->Load();
    EXPECT_TRUE(running->Do(good).ok());
    (void)running->Train(0, 1);
    SaveRequest bad = again;
    if (rank == 1) bad.place.directory = saved_.path() + "/no/such/parent";
    const absl::Status status = running->Do(bad);
    EXPECT_FALSE(status.ok());
    EXPECT_NE(status.message().find(rank == 1 ? "no/such/parent" : "rank 1"), std::string::npos)
        << status.ToString();
    (void)running->Train(1, 2);  // goes on
  });
  std::vector<std::string> names;
  for (const auto& entry : std::filesystem::directory_iterator(saved_.path()))
    names.push_back(entry.path().filename().string());
  std::ranges::sort(names);
  EXPECT_EQ(names, (std::vector<std::string>{"good", "latest"}));
  OnEachRank(c, [&](uint32_t, Running* running) {
    EXPECT_TRUE(running->Do(From("")).ok());
    EXPECT_EQ(running->runtime()->tensor_step(TensorIndex(0)), 0);
  });
}

TEST_F(CheckpointTroubleTest, NothingIsChangedByWhatCannotBeLoaded) {
  RanksCase c = Case(2, 1, Where::kStatesOnHost);
  (void)TrainAndSave(c, "a");
  RanksCase other = c;
  other.spec.tensors[1].elements += 1;
  RanksCase renamed = c;
  renamed.spec.tensors[2].name = "elsewhere";
  const auto refuses = [&](const RanksCase& model, const LoadRequest& request,
                           const std::string& words) {
    OnEachRank(model, [&](uint32_t, Running* running) {
      (void)running->Load();
      (void)running->Train(0, 1);
      const Seen before = running->See();
      const absl::Status status = running->Do(request);
      EXPECT_FALSE(status.ok());
      EXPECT_NE(status.message().find(words), std::string::npos) << status.ToString();
      EXPECT_EQ(running->See(), before);
      (void)running->Train(1, 2);
    });
  };
  refuses(c, From("b"), "b");
  refuses(other, From("a"), other.spec.tensors[1].name);
  refuses(renamed, From("a"), "elsewhere");
  // It can be loaded without what it lacks, which stays as it was.
  OnEachRank(renamed, [&](uint32_t, Running* running) {
    (void)running->Load();
    const Seen before = running->See();
    LoadRequest some = From("a");
    some.some = true;
    EXPECT_TRUE(running->Do(some).ok());
    const Seen after = running->See();
    for (size_t t = 0; t < after.values.size(); ++t) {
      const bool trained = renamed.spec.tensors[t].keep != Keep::kParam;
      EXPECT_EQ(after.values[t] == before.values[t], t == 2 || !trained) << t;
    }
  });
  // Without states: as if training began with these values.
  OnEachRank(c, [&](uint32_t, Running* running) {
    LoadRequest values = From("a");
    values.without_states = true;
    EXPECT_TRUE(running->Do(values).ok());
    for (const auto& fields : running->See().values) {
      for (size_t f = 1; f < fields.size(); ++f)
        EXPECT_EQ(fields[f], std::vector<float>(fields[f].size())) << f;
    }
    EXPECT_EQ(running->runtime()->tensor_step(TensorIndex(0)), 0);
  });
}

// One call of the files after another fails: what there was is still there, or what is new is
// whole; nothing else stays on the disk; and training goes on.
TEST_F(CheckpointTroubleTest, EveryCallOfTheFilesFails) {
  RanksCase c = Case(1, 0, Where::kStatesOnHost);
  SimFiles files;
  ASSERT_TRUE(files.MakeDirectory("/dir").ok());
  c.config.checkpoint_files = &files;
  const auto request = [this](const char* tag) {
    SaveRequest save = Request(tag);
    save.place.directory = "/dir";
    return save;
  };
  OnEachRank(c, [&](uint32_t, Running* running) {
    (void)running->Load();
    int failures = 0;
    for (const std::string tag : {"good", "next"}) {
      for (uint64_t n = 1;; ++n) {
        ASSERT_TRUE(running->Do(request("good")).ok());
        const Seen saved = running->See();
        (void)running->Train(1, 2);
        const Seen now = running->See();
        const uint64_t calls = files.calls;
        files.fail_at = calls + n;
        files.error = absl::UnavailableError("planted");
        const absl::Status status = running->Do(request(tag.c_str()));
        const bool reached = files.calls - calls >= n;
        files.fail_at = 0;
        if (!reached) break;
        failures += status.ok() ? 0 : 1;
        // What was replaced may be there still, for whoever looks next to take away.
        EXPECT_TRUE(PruneCheckpoints(&files, "/dir", 1000, 0).ok());
        for (const std::string& path : files.AllFiles())
          EXPECT_EQ(path.find("/."), std::string::npos) << tag << " " << n << " left " << path;
        const absl::Status loaded = running->Do(LoadRequest{.directory = "/dir", .tag = "good"});
        ASSERT_TRUE(loaded.ok()) << loaded.ToString();
        const Seen seen = running->See();
        EXPECT_TRUE(seen == saved || (tag == "good" && seen == now)) << tag << " " << n;
        EXPECT_TRUE(!status.ok() || tag != "good" || seen == now) << n;
      }
    }
    EXPECT_GT(failures, 10);
  });
}

// A runtime that has loaded half of a model is of no use, and says so; one that has lost values
// that it was to save has saved nothing.
TEST_F(CheckpointTroubleTest, DamageIsFound) {
  const RanksCase c = Case(1, 0, Where::kStatesOnHost);
  (void)TrainAndSave(c, "a");
  const std::string path = saved_.path() + "/a/rank-00000.safetensors";
  const auto middle = static_cast<std::streamoff>(std::filesystem::file_size(path) / 2);
  std::fstream file(path, std::ios::in | std::ios::out | std::ios::binary);
  file.seekg(middle);
  const int byte = file.get();
  file.seekp(middle);
  file.put(static_cast<char>(byte ^ 1));
  file.close();
  auto links = std::vector<RankLinks>(1);
  Running running(c, 0, std::move(links[0]));
  (void)running.Load();
  const absl::Status status = running.Do(From("a"));
  EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss) << status.ToString();
  EXPECT_NE(status.message().find("rank-00000.safetensors"), std::string::npos)
      << status.ToString();
  EXPECT_FALSE(running.runtime()->failure().ok());
}

// Files whose disk hangs until it is told not to.
class HangingFiles final : public Files {
 public:
  absl::StatusOr<std::unique_ptr<OutputFile>> Create(const std::string&, uint64_t) override {
    std::unique_lock lock(mutex_);
    reached_ = true;
    changed_.notify_all();
    changed_.wait(lock, [this] { return released_; });
    return absl::UnavailableError("it hung");
  }
  absl::StatusOr<std::unique_ptr<InputFile>> Open(const std::string& path) override {
    return files_.Open(path);
  }
  absl::Status MakeDirectory(const std::string& path) override {
    return files_.MakeDirectory(path);
  }
  absl::Status SyncDirectory(const std::string& path) override {
    return files_.SyncDirectory(path);
  }
  absl::Status Rename(const std::string& from, const std::string& to) override {
    return files_.Rename(from, to);
  }
  absl::Status Exchange(const std::string& a, const std::string& b) override {
    return files_.Exchange(a, b);
  }
  absl::Status Link(const std::string& from, const std::string& to) override {
    return files_.Link(from, to);
  }
  absl::Status Remove(const std::string& path) override { return files_.Remove(path); }
  absl::StatusOr<std::vector<std::string>> List(const std::string& path) override {
    return files_.List(path);
  }
  bool IsDirectory(const std::string& path) override { return files_.IsDirectory(path); }

  void WaitUntilReached() {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [this] { return reached_; });
  }
  void Release() {
    const std::lock_guard lock(mutex_);
    released_ = true;
    changed_.notify_all();
  }
  SimFiles& files() { return files_; }

 private:
  SimFiles files_;
  std::mutex mutex_;
  std::condition_variable changed_;
  bool reached_ = false;
  bool released_ = false;
};

// A runtime that ends while its files hang says so.
TEST_F(CheckpointTroubleTest, ItsEndNamesFilesThatHang) {
  static HangingFiles files;  // its thread ends after the test
  ASSERT_TRUE(files.files().MakeDirectory("/dir").ok());
  RanksCase c = Case(1, 0, Where::kStatesOnHost);
  c.config.checkpoint_files = &files;
  SaveRequest request = Request("tag");
  request.place.directory = "/dir";
  auto links = std::vector<RankLinks>(1);
  Running running(c, 0, std::move(links[0]));
  (void)running.Load();
  (void)running.runtime()->Checkpoint(request);
  files.WaitUntilReached();
  const absl::Status closed = running.Close();
  EXPECT_EQ(closed.code(), absl::StatusCode::kUnavailable) << closed.ToString();
  EXPECT_NE(closed.message().find("checkpoint"), std::string::npos) << closed.ToString();
  files.Release();
}

}  // namespace
}  // namespace sluice::testing
