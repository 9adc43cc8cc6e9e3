// tests/core/executor_conformance.h
//
// What every Executor promises, as tests over a kind: instantiated for threads and for the
// simulated executor.

#ifndef SLUICE_TESTS_CORE_EXECUTOR_CONFORMANCE_H_
#define SLUICE_TESTS_CORE_EXECUTOR_CONFORMANCE_H_

#include <gtest/gtest.h>

#include <array>
#include <atomic>
#include <functional>
#include <latch>
#include <limits>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "core/executor.h"
#include "core/sim_executor.h"
#include "core/sim_world.h"
#include "core/status.h"
#include "tests/core/waiting_inbox.h"

namespace sluice {

enum class Workers { kThreads, kSimulated };

inline std::string NameOf(const testing::TestParamInfo<Workers>& info) {
  return std::array{"Threads", "Simulated"}[static_cast<size_t>(info.param)];
}

class ExecutorTest : public testing::TestWithParam<Workers> {
 protected:
  // Runs `work`, then posts itself; counts how often it was handled.
  struct Job final : Task, Event {
    void Run() override {
      work();
      inbox->Post(this);
    }
    void Handle() override {
      ++handled;
      if (then) then();
    }
    std::function<void()> work = [] {};
    std::function<void()> then;
    Inbox* inbox = nullptr;
    int handled = 0;
  };

  bool simulated() const { return GetParam() == Workers::kSimulated; }

  void Start(int workers) {
    if (simulated()) {
      executor_ = MakeSimExecutor(&world_, workers);
      return;
    }
    auto made = MakeExecutor(workers);
    SLUICE_CHECK_MSG(made.ok(), Message(made.status()));
    executor_ = *std::move(made);
  }

  std::vector<std::unique_ptr<Job>> MakeJobs(int n) {
    std::vector<std::unique_ptr<Job>> jobs;
    for (int i = 0; i < n; ++i) {
      jobs.push_back(std::make_unique<Job>());
      jobs.back()->inbox = waiting_.inbox();
    }
    return jobs;
  }
  void WaitFor(const std::vector<std::unique_ptr<Job>>& jobs) {
    waiting_.HandleUntil([&] {
      return std::all_of(jobs.begin(), jobs.end(), [](const auto& j) { return j->handled > 0; });
    });
  }

  SimWorld world_{1};
  WaitingInbox waiting_{simulated() ? &world_ : nullptr};
  std::unique_ptr<Executor> executor_;  // ends before what its tasks post to
};

TEST_P(ExecutorTest, RunsEveryTaskOnce) {
  Start(3);
  auto jobs = MakeJobs(1000);
  std::vector<std::atomic<int>> runs(jobs.size());
  for (size_t i = 0; i < jobs.size(); ++i) {
    jobs[i]->work = [&runs, i] { ++runs[i]; };
    executor_->Submit(jobs[i].get());
  }
  WaitFor(jobs);
  for (const auto& run : runs) EXPECT_EQ(1, run);
}

TEST_P(ExecutorTest, TakesTasksFromManyThreads) {
  if (simulated()) GTEST_SKIP() << "a simulation has one thread";
  Start(2);
  auto jobs = MakeJobs(800);
  std::atomic<int> ran{0};
  std::vector<std::thread> threads;
  for (size_t t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      for (size_t i = t; i < jobs.size(); i += 4) {
        jobs[i]->work = [&ran] { ++ran; };
        executor_->Submit(jobs[i].get());
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  WaitFor(jobs);
  EXPECT_EQ(800, ran);
}

TEST_P(ExecutorTest, StartsTheEarliestSubmittedFirst) {
  Start(1);
  auto jobs = MakeJobs(200);
  std::vector<size_t> order;  // one worker, so nobody else writes
  for (size_t i = 0; i < jobs.size(); ++i) jobs[i]->work = [&order, i] { order.push_back(i); };
  for (const auto& job : jobs) executor_->Submit(job.get());
  WaitFor(jobs);
  ASSERT_EQ(jobs.size(), order.size());
  for (size_t i = 0; i < order.size(); ++i) ASSERT_EQ(i, order[i]);
}

TEST_P(ExecutorTest, HasAsManyWorkersAsAskedFor) {
  Start(2);
  EXPECT_EQ(2, executor_->concurrency());
  EXPECT_NE(std::string::npos, executor_->description().find('2')) << executor_->description();
  auto jobs = MakeJobs(2);
  if (simulated()) {
    for (const auto& job : jobs) executor_->Submit(job.get());
    WaitFor(jobs);
    EXPECT_LE(world_.Now(), 4 * (SimWork().start + Nanos(jobs[0]->cost().amount)))
        << "side by side";
    return;
  }
  std::latch both(2);  // each waits for the other to run
  for (const auto& job : jobs) {
    job->work = [&both] { both.arrive_and_wait(); };
    executor_->Submit(job.get());
  }
  WaitFor(jobs);
}

TEST_P(ExecutorTest, WorkersFlushSubnormalsAndCallersDont) {
  Start(2);
  volatile float smallest = std::numeric_limits<float>::min();
  auto jobs = MakeJobs(4);
  std::array<float, 4> halves;
  for (size_t i = 0; i < jobs.size(); ++i) {
    jobs[i]->work = [&, i] { halves[i] = smallest * 0.5f; };
    executor_->Submit(jobs[i].get());
  }
  WaitFor(jobs);
  for (const float half : halves) EXPECT_EQ(0.0f, half);
  EXPECT_NE(0.0f, smallest * 0.5f);
}

TEST_P(ExecutorTest, ATaskMaySubmitAnother) {
  Start(1);
  auto jobs = MakeJobs(50);
  for (size_t i = 0; i + 1 < jobs.size(); ++i)
    jobs[i]->work = [this, next = jobs[i + 1].get()] { executor_->Submit(next); };
  executor_->Submit(jobs[0].get());
  WaitFor(jobs);
}

// A task that posts an event as its last act is its owner's again from then on.
TEST_P(ExecutorTest, ATaskMayBeSubmittedAgainOnceItHasPosted) {
  Start(2);
  auto jobs = MakeJobs(3);
  for (const auto& job : jobs) {
    job->then = [this, job = job.get()] {
      if (job->handled < 300) executor_->Submit(job);
    };
    executor_->Submit(job.get());
  }
  waiting_.HandleUntil([&] {
    return std::all_of(jobs.begin(), jobs.end(), [](const auto& j) { return j->handled == 300; });
  });
}

TEST_P(ExecutorTest, TheDestructorWaitsForWhatWasSubmitted) {
  for (int round = 0; round < 10; ++round) {
    Start(2);
    auto jobs = MakeJobs(20);
    std::atomic<int> ran{0};
    for (const auto& job : jobs) {
      job->work = [&ran] { ++ran; };
      executor_->Submit(job.get());
    }
    executor_.reset();
    EXPECT_EQ(20, ran);
    WaitFor(jobs);
  }
}

TEST_P(ExecutorTest, OnceAbandonedItRunsWhatHadBegunAndNothingElse) {
  Start(1);
  EXPECT_EQ(0u, executor_->pending());
  auto jobs = MakeJobs(5);
  std::atomic<int> ran{0};
  std::latch begun(simulated() ? 0 : 1);
  std::latch abandoned(simulated() ? 0 : 1);
  for (const auto& job : jobs) job->work = [&ran] { ++ran; };
  jobs[0]->work = [&] {
    ++ran;
    begun.count_down(simulated() ? 0 : 1);
    abandoned.wait();
  };
  for (const auto& job : jobs) executor_->Submit(job.get());
  begun.wait();
  EXPECT_EQ(5u, executor_->pending());
  executor_->Abandon();
  EXPECT_EQ(1u, executor_->pending());
  abandoned.count_down(simulated() ? 0 : 1);
  waiting_.HandleUntil([&] { return jobs[0]->handled > 0; });
  executor_.reset();
  EXPECT_EQ(1, ran);
}

TEST_P(ExecutorTest, MayEndUnused) { Start(4); }

}  // namespace sluice

#endif  // SLUICE_TESTS_CORE_EXECUTOR_CONFORMANCE_H_
