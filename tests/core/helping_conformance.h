// tests/core/helping_conformance.h
//
// What every Executor promises to those that help it while they wait; see executor_conformance.h.

#ifndef SLUICE_TESTS_CORE_HELPING_CONFORMANCE_H_
#define SLUICE_TESTS_CORE_HELPING_CONFORMANCE_H_

#include <chrono>

#include "tests/core/executor_conformance.h"

namespace sluice {

// Who helps runs what no worker has begun, and the earliest first: with the only worker kept, all
// of it.
TEST_P(ExecutorTest, WhoWaitsRunsWhatNoWorkerHasBegun) {
  Start(1);
  auto jobs = MakeJobs(20);
  std::vector<size_t> order;
  std::vector<std::thread::id> by(jobs.size());
  std::latch begun(simulated() ? 0 : 1);
  std::latch end(simulated() ? 0 : 1);
  jobs[0]->work = [&] {
    begun.count_down(simulated() ? 0 : 1);
    end.wait();
  };
  std::atomic<size_t> ran{0};
  for (size_t i = 1; i < jobs.size(); ++i) {
    jobs[i]->work = [&, i] {
      order.push_back(i);
      by[i] = std::this_thread::get_id();
      ++ran;
    };
  }
  executor_->Submit(jobs[0].get());
  begun.wait();
  for (size_t i = 1; i < jobs.size(); ++i) executor_->Submit(jobs[i].get());
  executor_->HelpUntil([&] { return ran == jobs.size() - 1; }, std::chrono::minutes(10));
  end.count_down(simulated() ? 0 : 1);
  WaitFor(jobs);
  ASSERT_EQ(jobs.size() - 1, order.size());
  for (size_t i = 0; i < order.size(); ++i) EXPECT_EQ(i + 1, order[i]);
  for (size_t i = 1; i < jobs.size(); ++i) EXPECT_EQ(std::this_thread::get_id(), by[i]);
}

TEST_P(ExecutorTest, WhoHelpsFlushesSubnormalsMeanwhileOnly) {
  Start(1);
  volatile float smallest = std::numeric_limits<float>::min();
  auto jobs = MakeJobs(40);
  std::vector<float> halves(jobs.size(), -1.0f);
  std::atomic<size_t> ran{0};
  for (size_t i = 0; i < jobs.size(); ++i) {
    jobs[i]->work = [&, i] {
      halves[i] = smallest * 0.5f;
      ++ran;
    };
    executor_->Submit(jobs[i].get());
  }
  executor_->HelpUntil([&] { return ran == jobs.size(); }, std::chrono::minutes(10));
  EXPECT_NE(0.0f, smallest * 0.5f);
  WaitFor(jobs);
  for (const float half : halves) EXPECT_EQ(0.0f, half);
}

TEST_P(ExecutorTest, HelpersGoWhenToldOrLate) {
  Start(1);
  executor_->HelpUntil([] { return true; }, std::chrono::minutes(10));
  executor_->HelpUntil([] { return false; }, std::chrono::milliseconds(1));
  if (simulated()) return;  // has one thread
  std::atomic<bool> told{false};
  std::vector<std::thread> helpers;
  for (int i = 0; i < 3; ++i) {
    helpers.emplace_back(
        [&] { executor_->HelpUntil([&] { return told.load(); }, std::chrono::minutes(10)); });
  }
  told = true;
  executor_->WakeHelpers();
  for (std::thread& helper : helpers) helper.join();
}

// What helpers leave, workers take: nothing is left to one who has gone.
TEST_P(ExecutorTest, HelpersComeAndGoAndEveryTaskRunsOnce) {
  if (simulated()) GTEST_SKIP() << "a simulation has one thread";
  Start(2);
  auto jobs = MakeJobs(3000);
  std::vector<std::atomic<int>> runs(jobs.size());
  std::atomic<bool> end{false};
  std::vector<std::thread> helpers;
  for (int h = 0; h < 2; ++h) {
    helpers.emplace_back([&] {
      for (size_t n = 0; !end; ++n) {
        size_t asked = 0;
        executor_->HelpUntil([&] { return end || ++asked > n % 5; }, std::chrono::milliseconds(1));
      }
    });
  }
  for (size_t i = 0; i < jobs.size(); ++i) {
    jobs[i]->work = [&runs, i] { ++runs[i]; };
    executor_->Submit(jobs[i].get());
  }
  WaitFor(jobs);
  end = true;
  executor_->WakeHelpers();
  for (std::thread& helper : helpers) helper.join();
  for (const auto& run : runs) EXPECT_EQ(1, run);
}

}  // namespace sluice

#endif  // SLUICE_TESTS_CORE_HELPING_CONFORMANCE_H_
