#include "offload/run/tickets.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <latch>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "core/status.h"

namespace sluice {
namespace {

using std::chrono::milliseconds;

TEST(TicketsTest, HaveTheResultOfTheirOperationOnce) {
  Tickets tickets;
  const Ticket ticket = tickets.Make();
  EXPECT_NE(0u, ticket);
  EXPECT_EQ(std::nullopt, tickets.Wait(ticket, milliseconds(0)));
  EXPECT_EQ(std::nullopt, tickets.Wait(ticket, milliseconds(1)));
  tickets.Complete(ticket, absl::DataLossError("lost"));
  const auto result = tickets.Wait(ticket, milliseconds(0));
  ASSERT_TRUE(result);
  EXPECT_TRUE(absl::IsDataLoss(*result));
  EXPECT_FALSE(Tickets::SaysNotOpen(*result));
  const auto again = tickets.Wait(ticket, milliseconds(0));
  ASSERT_TRUE(again);
  EXPECT_TRUE(absl::IsInvalidArgument(*again)) << *again;
  EXPECT_TRUE(Tickets::SaysNotOpen(*again));
}

// Whoever waits runs tasks meanwhile: here the one that completes its ticket, which nobody else
// can.
TEST(TicketsTest, WhoWaitsHelpsTheExecutor) {
  struct Completes final : Task {
    void Run() override { tickets->Complete(ticket, absl::DataLossError("lost")); }
    Tickets* tickets = nullptr;
    Ticket ticket = 0;
  };
  struct Waits final : Task {
    void Run() override {
      begun.count_down();
      end.wait();
    }
    std::latch begun{1};
    std::latch end{1};
  };
  Waits waits;
  Completes completes;
  const auto executor = MakeExecutor(1);
  ASSERT_TRUE(executor.ok());
  Tickets tickets(executor->get());
  completes.tickets = &tickets;
  completes.ticket = tickets.Make();
  (*executor)->Submit(&waits);
  waits.begun.wait();
  EXPECT_EQ(std::nullopt, tickets.Wait(completes.ticket, milliseconds(1)));
  (*executor)->Submit(&completes);
  const auto result = tickets.Wait(completes.ticket, std::chrono::minutes(10));
  waits.end.count_down();
  ASSERT_TRUE(result);
  EXPECT_TRUE(absl::IsDataLoss(*result));
}

TEST(TicketsTest, AnOperationsOwnInvalidArgumentIsNotThatTheTicketIsNotOpen) {
  Tickets tickets;
  const Ticket ticket = tickets.Make();
  const absl::Status words = *tickets.Wait(ticket + 1, milliseconds(0));
  tickets.Complete(ticket, absl::InvalidArgumentError(words.message()));
  EXPECT_FALSE(Tickets::SaysNotOpen(*tickets.Wait(ticket, milliseconds(0))));
}

TEST(TicketsTest, WhatIsDroppedWasNeverMade) {
  Tickets tickets;
  const Ticket dropped = tickets.Make();
  tickets.Drop(dropped);
  EXPECT_TRUE(Tickets::SaysNotOpen(*tickets.Wait(dropped, milliseconds(0))));
  const Ticket done = tickets.Make();
  EXPECT_NE(dropped, done);
  tickets.CompleteUnseen(done);
  EXPECT_EQ(absl::OkStatus(), tickets.Wait(done, milliseconds(0)));
  EXPECT_TRUE(Tickets::SaysNotOpen(*tickets.Wait(done, milliseconds(0))));
}

TEST(TicketsTest, AUsedUpTicketIsNeverAnothersToo) {
  Tickets tickets;
  std::set<Ticket> seen;
  for (int i = 0; i < 1000; ++i) {
    const Ticket ticket = tickets.Make();
    EXPECT_TRUE(seen.insert(ticket).second);
    tickets.Complete(ticket, absl::OkStatus());
    EXPECT_TRUE(tickets.Wait(ticket, milliseconds(0))->ok());
  }
}

// Also when an entry has had as many as its generations can tell apart.
TEST(TicketsTest, AtTheLastGenerationNoneIsZeroOrGivenTwice) {
  for (const uint32_t first : {UINT32_MAX, UINT32_MAX - 1, UINT32_MAX - 7}) {
    Tickets tickets(nullptr, first);
    std::set<Ticket> seen;
    std::vector<Ticket> open;
    for (int i = 0; i < 100; ++i) {
      open.push_back(tickets.Make());
      EXPECT_NE(0u, open.back());
      EXPECT_TRUE(seen.insert(open.back()).second) << open.back();
      if (open.size() < 3) continue;  // several entries come to their end
      const Ticket ticket = open[static_cast<size_t>(i) % 3];
      open.erase(open.begin() + i % 3);
      tickets.Complete(ticket, absl::OkStatus());
      EXPECT_TRUE(tickets.Wait(ticket, milliseconds(0))->ok());
    }
    for (const Ticket ticket : seen) {
      const bool is_open = std::find(open.begin(), open.end(), ticket) != open.end();
      const std::optional<absl::Status> result = tickets.Wait(ticket, milliseconds(0));
      EXPECT_EQ(is_open, !result.has_value()) << ticket;
      EXPECT_TRUE(is_open || Tickets::SaysNotOpen(*result)) << ticket;
    }
  }
}

TEST(TicketsTest, InventedOnesAreErrors) {
  Tickets tickets;
  const Ticket ticket = tickets.Make();
  for (const Ticket invented : {Ticket{0}, ticket + 1, ticket + (Ticket{1} << 32), ~Ticket{0}})
    EXPECT_TRUE(absl::IsInvalidArgument(*tickets.Wait(invented, milliseconds(100)))) << invented;
}

TEST(TicketsTest, ManyThreadsWaitForWhatAnotherCompletes) {
  constexpr size_t kThreads = 4;
  constexpr size_t kTickets = 300;
  Tickets tickets;
  std::vector<std::vector<Ticket>> made(kThreads);
  for (auto& list : made) {
    for (size_t i = 0; i < kTickets; ++i) list.push_back(tickets.Make());
  }
  std::vector<int> results(kThreads * kTickets, 0);  // written before Complete, read after Wait
  std::vector<std::thread> waiters;
  for (size_t t = 0; t < kThreads; ++t) {
    waiters.emplace_back([&, t] {
      for (size_t i = 0; i < kTickets; ++i) {
        std::optional<absl::Status> result;
        while (!result) result = tickets.Wait(made[t][i], milliseconds(100));
        EXPECT_TRUE(result->ok());
        EXPECT_EQ(1, results[t * kTickets + i]);
      }
    });
  }
  for (size_t i = kTickets; i > 0; --i) {
    for (size_t t = 0; t < kThreads; ++t) {
      results[t * kTickets + i - 1] = 1;
      tickets.Complete(made[t][i - 1], absl::OkStatus());
    }
  }
  for (std::thread& waiter : waiters) waiter.join();
}

TEST(TicketsTest, OneOfManyWhoWaitForATicketGetsItsResult) {
  Tickets tickets;
  const Ticket ticket = tickets.Make();
  std::atomic<int> got{0};
  std::vector<std::thread> waiters;
  for (int t = 0; t < 4; ++t) {
    waiters.emplace_back([&] {
      std::optional<absl::Status> result;
      while (!result) result = tickets.Wait(ticket, milliseconds(100));
      if (result->ok()) ++got;
    });
  }
  tickets.Complete(ticket, absl::OkStatus());
  for (std::thread& waiter : waiters) waiter.join();
  EXPECT_EQ(1, got);
}

TEST(TicketsDeathTest, AreCompletedOnce) {
  Tickets tickets;
  const Ticket ticket = tickets.Make();
  tickets.Complete(ticket, absl::OkStatus());
  EXPECT_DEATH(tickets.Complete(ticket, absl::OkStatus()), "check failed");
}

}  // namespace
}  // namespace sluice
