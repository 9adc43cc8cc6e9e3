#include "offload/run/calls.h"

#include <gtest/gtest.h>

#include <atomic>
#include <memory>
#include <new>
#include <thread>
#include <variant>
#include <vector>

#include "tests/offload/failing_new.h"

namespace sluice {
namespace {

using testing::Failing;
using testing::FailingNew;

struct Arrival final : Event {
  void Handle() override {
    calls->Heard();
    ++heard;
  }
  Calls* calls = nullptr;
  int heard = 0;
};

struct Way {
  Way() { arrival.calls = &calls; }
  Inbox inbox;
  Arrival arrival;
  Calls calls{&inbox, &arrival};
};

// Places that are taken, and those that are refused for want of memory, are as many as they are.
TEST(CallsTest, WhoHasAPlaceCanSend) {
  for (const Failing failing : {Failing::kOnce, Failing::kFromThenOn}) {
    Way way;
    RingQueue<Call> taken;
    uint32_t sent = 0, refused = 0;
    for (int round = 0; round < 20; ++round) {
      std::vector<std::unique_ptr<Calls::Place>> places;
      for (int i = 0; i < 100 * round; ++i) {
        alignas(Calls::Place) std::byte room[sizeof(Calls::Place)];
        Calls::Place* place = nullptr;
        {
          const FailingNew fails(0, failing);
          try {
            place = new (room) Calls::Place(&way.calls);
          } catch (const std::bad_alloc&) {
            ++refused;
          }
        }
        if (place != nullptr) place->~Place();
        places.push_back(std::make_unique<Calls::Place>(&way.calls));
      }
      for (size_t i = 0; i < places.size(); ++i) {
        const FailingNew fails(0, failing);
        if (i % 3 == 0) continue;  // not used
        if (i % 2 == 0) {
          places[i]->Send(DrainCall{sent++});
        } else {
          places[i]->SendQuietly(DrainCall{sent++});
        }
      }
      places.clear();
      if (round % 2 == 0) continue;
      way.inbox.HandleAll();
      way.calls.Take(&taken);
      EXPECT_FALSE(way.calls.any());
    }
    way.calls.Take(&taken);
    EXPECT_GT(refused, 0u);
    ASSERT_EQ(sent, taken.size());
    for (uint32_t i = 0; i < sent; ++i) {
      EXPECT_EQ(i, std::get<DrainCall>(taken.front()).ticket);
      taken.pop_front();
    }
  }
}

// Of many threads each one's calls stay in order, and whether one is announced is never missed.
TEST(CallsTest, CallsOfManyThreadsArrive) {
  constexpr uint32_t kThreads = 4, kCalls = 20'000;
  Way way;
  std::vector<std::thread> callers;
  std::atomic<uint32_t> left{kThreads};
  for (uint32_t t = 0; t < kThreads; ++t) {
    callers.emplace_back([&, t] {
      for (uint32_t i = 0; i < kCalls; ++i) {
        Calls::Place unused(&way.calls);
        Calls::Place place(&way.calls);
        if (i % 2 == 0) {
          place.Send(BeginCall{t, false});
        } else {
          place.SendQuietly(AcquireCall{UnitIndex(t), {}, i});
        }
      }
      --left;
    });
  }
  RingQueue<Call> taken;
  std::vector<uint32_t> next(kThreads, 0);
  uint32_t arrived = 0;
  while (arrived < kThreads * kCalls) {
    const bool last = left == 0;
    way.calls.SetHeeded(arrived % 2 == 0);
    way.inbox.HandleAll();
    way.calls.Take(&taken);
    for (; !taken.empty(); taken.pop_front(), ++arrived) {
      if (const auto* begin = std::get_if<BeginCall>(&taken.front())) {
        EXPECT_EQ(0u, next[begin->key]++ % 2);
      } else {
        const auto& acquire = std::get<AcquireCall>(taken.front());
        ASSERT_EQ(next[acquire.unit.value()]++, acquire.ticket);
      }
    }
    ASSERT_TRUE(!last || arrived == kThreads * kCalls);
  }
  for (std::thread& caller : callers) caller.join();
}

}  // namespace
}  // namespace sluice
