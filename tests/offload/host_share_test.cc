// What each rank may have of a host that it is not alone on.

#include "offload/run/host_share.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <map>
#include <utility>
#include <vector>

#include "fmt/format.h"
#include "offload/plan/ram_need.h"
#include "tests/offload/ranks_fixture.h"

namespace sluice {
namespace {

using testing::LinkRanks;
using testing::OnRanks;

constexpr int64_t kUnknown = HostView::kUnknown;

HostView On(char kernel) {
  HostView view;
  view.kernel[0] = kernel;
  return view;
}

// Ranks of up to three hosts, some of them not known, on any cores, in any of two cgroups, with or
// without knowing what is left.
std::vector<HostView> AnyViews() {
  const auto left = [] {
    return *rc::gen::weightedOneOf<int64_t>(
        {{1, rc::gen::just(kUnknown)}, {5, rc::gen::inRange<int64_t>(0, int64_t{1} << 40)}});
  };
  std::vector<HostView> views(*rc::gen::inRange<size_t>(1, 12));
  for (HostView& view : views) {
    view = On(*rc::gen::element('\0', 'a', 'b', 'c'));
    view.machine_left = left();
    if (*rc::gen::arbitrary<bool>() && view.machine_left != kUnknown) {
      view.cgroup_left = std::max<int64_t>(0, left());
      view.memory_limit = {1, *rc::gen::inRange<uint64_t>(0, 3)};
    }
    view.quota = {1, *rc::gen::inRange<uint64_t>(0, 3)};
    view.need = *rc::gen::inRange<int64_t>(0, int64_t{1} << 38);
    for (const size_t word : {size_t{0}, view.cores.size() - 1})
      view.cores[word] = *rc::gen::arbitrary<uint64_t>();
  }
  return views;
}

std::vector<HostShare> SharesOf(const std::vector<HostView>& views) {
  std::vector<HostShare> shares;
  for (uint32_t r = 0; r < views.size(); ++r) shares.push_back(ShareOf(views, Rank(r)));
  return shares;
}

RC_GTEST_PROP(HostShareTest, LocalRanksAreCountedOnEachHost, ()) {
  const std::vector<HostView> views = AnyViews();
  const std::vector<HostShare> shares = SharesOf(views);
  std::map<char, uint32_t> seen;
  for (size_t r = 0; r < views.size(); ++r) {
    const char kernel = views[r].kernel[0];
    if (kernel == 0) {
      RC_ASSERT(shares[r].local_rank == 0u && shares[r].local_ranks == 1u);
      continue;
    }
    RC_ASSERT(shares[r].local_rank == seen[kernel]++);
    RC_ASSERT(shares[r].local_ranks == std::ranges::count_if(views, [&](const HostView& view) {
                return view.kernel[0] == kernel;
              }));
  }
}

// All cores that anybody may run on are given out, and none twice.
RC_GTEST_PROP(HostShareTest, CoresAddUpToThoseOfTheHost, ()) {
  const std::vector<HostView> views = AnyViews();
  const std::vector<HostShare> shares = SharesOf(views);
  for (const char kernel : {'a', 'b', 'c'}) {
    double given = 0;
    std::vector<uint64_t> anybodys(views[0].cores.size());
    for (size_t r = 0; r < views.size(); ++r) {
      if (views[r].kernel[0] != kernel) continue;
      double own = 0;
      for (size_t w = 0; w < anybodys.size(); ++w) {
        own += std::popcount(views[r].cores[w]);
        anybodys[w] |= views[r].cores[w];
      }
      RC_ASSERT(shares[r].cores > 0 && shares[r].cores <= 1);
      given += own * shares[r].cores;
    }
    double all = 0;
    for (const uint64_t word : anybodys) all += std::popcount(word);
    RC_ASSERT(std::abs(given - all) < 1e-6);
  }
}

// Whoever takes what it may leaves everybody else what that one may take.
RC_GTEST_PROP(HostShareTest, WhatAllMayTakeIsThere, ()) {
  const std::vector<HostView> views = AnyViews();
  const std::vector<HostShare> shares = SharesOf(views);
  for (size_t r = 0; r < views.size(); ++r) {
    const HostView& own = views[r];
    RC_ASSERT(shares[r].ram.has_value() == (own.machine_left != kUnknown));
    if (!shares[r].ram) continue;
    int64_t of_host = 0, of_cgroup = 0;
    for (size_t o = 0; o < views.size(); ++o) {
      const bool same_host = o == r || (own.kernel[0] != 0 && views[o].kernel == own.kernel);
      if (!same_host || !shares[o].ram) continue;
      of_host += shares[o].ram->value();
      if (o == r || (own.memory_limit[1] != 0 && views[o].memory_limit == own.memory_limit))
        of_cgroup += shares[o].ram->value();
    }
    RC_ASSERT(of_host <= own.machine_left);
    RC_ASSERT(own.cgroup_left == kUnknown || of_cgroup <= own.cgroup_left);
  }
  // One alone may take all.
  if (views.size() == 1 && shares[0].ram) {
    const int64_t left = views[0].cgroup_left == kUnknown
                             ? views[0].machine_left
                             : std::min(views[0].machine_left, views[0].cgroup_left);
    RC_ASSERT(shares[0].ram->value() == left);
  }
}

// Those of a quota divide it, whoever else is on the host.
RC_GTEST_PROP(HostShareTest, QuotasAreSharedByThoseInThem, ()) {
  const std::vector<HostView> views = AnyViews();
  std::map<std::pair<char, uint64_t>, double> given;
  for (uint32_t r = 0; r < views.size(); ++r) {
    const double quota = ShareOf(views, Rank(r)).quota;
    const bool alone = views[r].kernel[0] == 0 || views[r].quota[1] == 0;
    RC_ASSERT(!alone || quota == 1);
    if (!alone) given[{views[r].kernel[0], views[r].quota[1]}] += quota;
  }
  for (const auto& [of, sum] : given) RC_ASSERT(std::abs(sum - 1) < 1e-9);
}

Bytes Taken(const HostView& view) { return Bytes(view.need) + RamBeside(Bytes(view.need)); }

// On one host with any number of cgroups: if nobody is refused all is there, and if there is
// more than enough nobody is.
RC_GTEST_PROP(HostShareTest, SomebodyIsRefusedIfAndOnlyIfItIsTooMuch, ()) {
  std::vector<HostView> views = AnyViews();
  const int64_t most = *rc::gen::inRange<int64_t>(1, int64_t{1} << 38);
  for (HostView& view : views) {
    view.kernel = On('a').kernel;
    view.need %= most;
    if (view.machine_left == kUnknown) view.machine_left = int64_t{1} << 40;
  }
  bool refused = false, enough = true, ample = true;
  for (uint32_t r = 0; r < views.size(); ++r) {
    const HostView& own = views[r];
    MemoryLimits limits;
    limits.machine_total = Bytes(int64_t{1} << 41);
    limits.machine_available = Bytes(own.machine_left);
    if (own.cgroup_left != kUnknown) {
      limits.cgroup_limit = Bytes(own.cgroup_left) + GiB(1);
      limits.cgroup_used = GiB(1);
    }
    Bytes of_host, of_cgroup;
    for (uint32_t o = 0; o < views.size(); ++o) {
      of_host += Taken(views[o]);
      if (o == r || (own.memory_limit[1] != 0 && own.memory_limit == views[o].memory_limit))
        of_cgroup += Taken(views[o]);
    }
    const auto fits = [&](auto&& wanted) {
      return wanted(of_host) <= Bytes(own.machine_left) &&
             (own.cgroup_left == kUnknown || wanted(of_cgroup) <= Bytes(own.cgroup_left));
    };
    const bool is_refused =
        Bytes(own.need) > RamForArenas(LimitsAmong(views, Rank(r), std::move(limits)));
    refused |= is_refused && own.need > 0;
    enough &= fits([](Bytes sum) { return sum; });
    ample &= fits(
        [&](Bytes sum) { return sum + sum / 64 + MiB(32 * static_cast<int64_t>(views.size())); });
  }
  RC_ASSERT(refused || enough || most <= MiB(16).value());
  RC_ASSERT(!refused || !ample);
}

// All come to the same verdict, which is good if they compute in one way.
RC_GTEST_PROP(HostShareTest, RanksComputeInOneWayOrAreRefused, ()) {
  std::vector<HostView> views(*rc::gen::inRange<size_t>(1, 6));
  for (HostView& view : views) view.exchanges = *rc::gen::inRange<int64_t>(0, 3);
  const bool same = std::ranges::all_of(
      views, [&](const HostView& view) { return view.exchanges == views[0].exchanges; });
  for (uint32_t r = 0; r < views.size(); ++r) {
    const absl::Status status = CheckSameExchange(views, Rank(r), "the reason");
    RC_ASSERT(status.ok() == same);
    if (same) continue;
    RC_ASSERT(status.code() == absl::StatusCode::kFailedPrecondition);
    RC_ASSERT(status.message().find("and rank 0 on ") != std::string_view::npos);
    RC_ASSERT(status.message().find(fmt::format("(rank {}: the reason)", r)) !=
              std::string_view::npos);
  }
}

RC_GTEST_PROP(HostShareTest, RanksAddUpInOneWayOrAreRefused, ()) {
  std::vector<HostView> views(*rc::gen::inRange<size_t>(1, 6));
  for (HostView& view : views) view.reduction = *rc::gen::inRange<int64_t>(0, 2);
  const bool same = std::ranges::all_of(
      views, [&](const HostView& view) { return view.reduction == views[0].reduction; });
  for (uint32_t r = 0; r < views.size(); ++r) {
    const absl::Status status = CheckSameExchange(views, Rank(r), "the reason");
    RC_ASSERT(status.ok() == same);
    RC_ASSERT(same || status.message().find("must be the same") != std::string_view::npos);
  }
}

TEST(HostShareTest, ALookKnowsTheKernelTheCoresAndTheLimit) {
  const AllowedCores odd{.cores = {0, 63, 64, 1023, 1024, 9999}, .count = 6};
  const HostView real = LookAtHost(FilesBelow(""), odd, ReadMemoryLimits());
  EXPECT_NE(real.kernel[0], 0);
  EXPECT_EQ(real.kernel, LookAtHost(FilesBelow(""), AllowedCores(), ReadMemoryLimits()).kernel);
  EXPECT_EQ(real.cores[0], (uint64_t{1} << 63) | 1);
  EXPECT_EQ(real.cores[1], 1u);
  EXPECT_EQ(real.cores[15], uint64_t{1} << 63);
  EXPECT_GT(real.machine_left, 0);
  const HostView nothing = LookAtHost([](const std::string&) { return absl::NotFoundError("no"); },
                                      AllowedCores(), absl::NotFoundError("no"));
  EXPECT_EQ(nothing.kernel[0], 0);
  EXPECT_EQ(nothing.machine_left, kUnknown);
}

TEST(HostShareTest, RanksHearWhatEachFinds) {
  for (const uint32_t ranks : {1u, 2u, 4u}) {
    std::vector<RankLinks> links = LinkRanks(ranks);
    OnRanks(ranks, [&](uint32_t rank) {
      for (const int64_t need : {1000, 2000}) {
        HostView own = On('a');
        own.need = need + rank;
        const auto all = ExchangeViews(own, links[rank].agreement.get());
        ASSERT_TRUE(all.ok()) << all.status();
        ASSERT_EQ(all->size(), ranks);
        for (uint32_t r = 0; r < ranks; ++r) EXPECT_EQ((*all)[r].need, need + r);
      }
    });
  }
}

TEST(HostShareTest, WhoLeavesIsNotWaitedFor) {
  std::vector<RankLinks> links = LinkRanks(2);
  OnRanks(2, [&](uint32_t rank) {
    if (rank == 1) return (void)links[1].agreement->Close();
    const auto all = ExchangeViews(On('a'), links[0].agreement.get());
    EXPECT_THAT(std::string(Message(all.status())),
                ::testing::AllOf(::testing::HasSubstr("what the ranks find of their hosts"),
                                 ::testing::HasSubstr("rank 1")));
  });
}

}  // namespace
}  // namespace sluice
