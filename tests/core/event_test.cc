#include "core/event.h"

#include <gtest/gtest.h>

#include <thread>
#include <vector>

#include "tests/core/waiting_inbox.h"

namespace sluice {
namespace {

class CountingWaker final : public Waker {
 public:
  void Wake() override { ++wakes; }
  int wakes = 0;
};

struct Noting final : Event {
  Noting(std::vector<int>* log, int number) : log(log), number(number) {}
  void Handle() override {
    log->push_back(number);
    if (then) then();
  }
  std::vector<int>* const log;
  const int number;
  std::function<void()> then;
};

TEST(InboxTest, HandlesInOrderOfArrival) {
  Inbox inbox;
  std::vector<int> log;
  Noting events[] = {{&log, 0}, {&log, 1}, {&log, 2}};
  EXPECT_FALSE(inbox.HandleAll());
  for (Noting& event : events) inbox.Post(&event);
  EXPECT_FALSE(inbox.empty());
  EXPECT_TRUE(inbox.HandleAll());
  EXPECT_EQ((std::vector<int>{0, 1, 2}), log);
  EXPECT_TRUE(inbox.empty());
}

TEST(InboxTest, WakesOnceUntilItIsEmptied) {
  Inbox inbox;
  CountingWaker waker;
  inbox.SetWaker(&waker);
  std::vector<int> log;
  Noting events[] = {{&log, 0}, {&log, 1}};
  for (Noting& event : events) inbox.Post(&event);
  EXPECT_EQ(1, waker.wakes);
  inbox.HandleAll();
  inbox.Post(&events[0]);
  EXPECT_EQ(2, waker.wakes);
  inbox.HandleAll();
}

TEST(InboxTest, WhatHandlersPostIsLeftForTheNextCall) {
  Inbox inbox;
  std::vector<int> log;
  Noting first(&log, 0);
  Noting second(&log, 1);
  first.then = [&] { inbox.Post(&second); };
  second.then = [&] {
    if (log.size() < 4) inbox.Post(&second);  // an event may post itself again
  };
  inbox.Post(&first);
  EXPECT_TRUE(inbox.HandleAll());
  EXPECT_EQ((std::vector<int>{0}), log);
  while (inbox.HandleAll()) {
  }
  EXPECT_EQ((std::vector<int>{0, 1, 1, 1}), log);
}

TEST(InboxTest, ManyThreadsPostAndNothingIsLostOrTurnedRound) {
  constexpr int kThreads = 4;
  constexpr int kEvents = 2000;
  WaitingInbox waiting;
  std::vector<std::vector<int>> logs(kThreads);
  std::vector<std::thread> threads;
  std::vector<std::vector<std::unique_ptr<Noting>>> events(kThreads);
  for (int t = 0; t < kThreads; ++t) {
    for (int i = 0; i < kEvents; ++i)
      events[t].push_back(std::make_unique<Noting>(&logs[t], i));  // not synchronised: one handles
    threads.emplace_back([&, t] {
      for (const auto& event : events[t]) waiting.inbox()->Post(event.get());
    });
  }
  waiting.HandleUntil([&] {
    size_t handled = 0;
    for (const auto& log : logs) handled += log.size();
    return handled == kThreads * kEvents;
  });
  for (std::thread& thread : threads) thread.join();
  for (const auto& log : logs) EXPECT_TRUE(std::is_sorted(log.begin(), log.end()));
  EXPECT_TRUE(waiting.inbox()->empty());
}

// As a worker's task does: what the poster wrote is seen by the handler, and the other way round.
TEST(InboxTest, AnEventGoesBackAndForth) {
  struct Ball final : Event {
    void Handle() override { ++handled; }
    int written = 0;
    int handled = 0;
  };
  WaitingInbox here;
  WaitingInbox there;
  Ball ping;
  Ball pong;
  std::thread other([&] {
    for (int i = 1; i <= 500; ++i) {
      there.HandleUntil([&] { return ping.handled == i; });
      pong.written = ping.written + 1;
      here.inbox()->Post(&pong);
    }
  });
  for (int i = 1; i <= 500; ++i) {
    ping.written = 2 * i - 1;
    there.inbox()->Post(&ping);
    here.HandleUntil([&] { return pong.handled == i; });
    ASSERT_EQ(2 * i, pong.written);
  }
  other.join();
}

}  // namespace
}  // namespace sluice
