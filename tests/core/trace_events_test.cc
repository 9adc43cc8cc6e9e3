#include "core/trace_events.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <cstdint>
#include <fstream>
#include <iterator>
#include <map>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "core/status.h"
#include "nlohmann/json.hpp"
#include "tests/nvme/temp_dir.h"

namespace sluice {
namespace {

using nlohmann::json;

class TraceEventsTest : public testing::Test {
 protected:
  // What WriteChromeJson wrote, read back.
  json Written(const TraceEvents& trace) const {
    const std::string path = dir_.path() + "/trace.json";
    const absl::Status status = trace.WriteChromeJson(path);
    EXPECT_TRUE(status.ok()) << status;
    std::ifstream file(path);
    return json::parse(file);
  }
  static std::vector<json> OfPhase(const json& document, const char* phase) {
    std::vector<json> events;
    for (const json& event : document["traceEvents"]) {
      if (event["ph"] == phase) events.push_back(event);
    }
    return events;
  }

  const TempDir dir_;
};

TEST_F(TraceEventsTest, WritesWhatChromeAndPerfettoRead) {
  TraceEvents trace(10);
  const TrackId reads = trace.AddTrack("nvme \"read\"\n");
  const TrackId compute = trace.AddTrack("compute");
  trace.Record(reads, "read", 17, TimePoint(2'500), TimePoint(4'000));
  trace.Record(compute, "forward", -1, TimePoint(1'000), TimePoint(9'000));
  const json document = Written(trace);
  const std::vector<json> spans = OfPhase(document, "X");
  ASSERT_EQ(2u, spans.size());
  EXPECT_EQ("read 17", spans[0]["name"]);
  EXPECT_EQ(2.5, spans[0]["ts"]) << "in microseconds";
  EXPECT_EQ(1.5, spans[0]["dur"]);
  EXPECT_EQ("forward", spans[1]["name"]) << "without a number";
  EXPECT_NE(spans[0]["tid"], spans[1]["tid"]);
  std::map<int, std::string> names;
  for (const json& event : OfPhase(document, "M")) {
    if (event["name"] == "thread_name") names[event["tid"]] = event["args"]["name"];
  }
  EXPECT_EQ("nvme \"read\"\n", names[spans[0]["tid"]]);
  EXPECT_EQ("compute", names[spans[1]["tid"]]);
  EXPECT_EQ("0", document["otherData"]["spans_dropped"]);
}

TEST_F(TraceEventsTest, SpansThatOverlapLieOnLanesOfTheirOwn) {
  TraceEvents trace(100);
  const TrackId track = trace.AddTrack("reads");
  for (int i = 0; i < 60; ++i)  // three at a time, recorded out of order
    trace.Record(track, "read", i, TimePoint(1000 * ((i * 7) % 60)),
                 TimePoint(1000 * ((i * 7) % 60 + 3)));
  std::map<int, std::vector<std::pair<double, double>>> lanes;
  for (const json& span : OfPhase(Written(trace), "X"))
    lanes[span["tid"]].emplace_back(span["ts"],
                                    span["ts"].get<double>() + span["dur"].get<double>());
  EXPECT_EQ(3u, lanes.size());
  for (auto& [lane, spans] : lanes) {
    std::sort(spans.begin(), spans.end());
    for (size_t i = 1; i < spans.size(); ++i) EXPECT_LE(spans[i - 1].second, spans[i].first);
  }
}

TEST_F(TraceEventsTest, WhatDoesNotFitIsCountedAndTheFileSaysSo) {
  TraceEvents trace(3);
  const TrackId track = trace.AddTrack("t");
  for (int i = 0; i < 10; ++i) trace.Record(track, "x", i, TimePoint(i), TimePoint(i + 1));
  EXPECT_EQ(7u, trace.dropped());
  const json document = Written(trace);
  EXPECT_EQ(3u, OfPhase(document, "X").size());
  EXPECT_EQ("7", document["otherData"]["spans_dropped"]);
  trace.Clear();
  EXPECT_EQ(0u, trace.dropped());
  EXPECT_EQ(0u, OfPhase(Written(trace), "X").size());
}

TEST_F(TraceEventsTest, WithoutRoomNothingIsRecordedOrDropped) {
  TraceEvents trace(0);
  EXPECT_FALSE(trace.enabled());
  trace.Record(trace.AddTrack("t"), "x", 0, TimePoint(0), TimePoint(1));
  EXPECT_EQ(0u, trace.dropped());
  EXPECT_EQ(0u, OfPhase(Written(trace), "X").size());
}

TEST_F(TraceEventsTest, ManyThreadsRecord) {
  TraceEvents trace(1000);
  const TrackId track = trace.AddTrack("t");
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      for (int i = 0; i < 300; ++i)
        trace.Record(track, "x", t * 1000 + i, TimePoint(i), TimePoint(i + 1));
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(200u, trace.dropped());
  std::set<std::string> names;
  for (const json& span : OfPhase(Written(trace), "X")) names.insert(span["name"]);
  EXPECT_EQ(1000u, names.size()) << "each span is kept whole, and once";
}

// A place is used again after Clear while whoever had it before may still be writing.
TEST_F(TraceEventsTest, ThreadsRecordWhileOthersForgetAndRead) {
  TraceEvents trace(16);
  constexpr const char* kNames[] = {"a", "b", "c"};
  for (size_t t = 0; t < std::size(kNames); ++t) trace.AddTrack(kNames[t]);
  std::atomic<bool> done{false};
  std::vector<std::thread> threads;
  for (size_t t = 0; t < std::size(kNames); ++t) {
    threads.emplace_back([&, t] {
      for (int64_t i = 0; !done; ++i) {
        const int64_t at = 10 * i + static_cast<int64_t>(t);
        trace.Record(static_cast<TrackId>(t), kNames[t], at, TimePoint(1000 * at),
                     TimePoint(1000 * (at + 7)));
      }
    });
  }
  threads.emplace_back([&] {
    while (!done) trace.Clear();
  });
  const auto check = [&] {
    std::set<std::string> names;
    for (const json& span : OfPhase(Written(trace), "X")) {
      const std::string name = span["name"];
      ASSERT_TRUE(names.insert(name).second) << name << " is there twice";
      const int at = std::stoi(name.substr(2));
      EXPECT_EQ(name[0] - 'a', at % 10) << "of two spans";
      EXPECT_EQ(at, span["ts"]);
      EXPECT_EQ(7, span["dur"]);
    }
    EXPECT_LE(names.size(), 16u);
  };
  for (int i = 0; i < 30; ++i) check();
  done = true;
  for (std::thread& thread : threads) thread.join();
  check();
  trace.Clear();
  EXPECT_EQ(0u, OfPhase(Written(trace), "X").size());
  trace.Record(1, "b", 1, TimePoint(1000), TimePoint(8000));
  EXPECT_EQ(1u, OfPhase(Written(trace), "X").size()) << "no place is lost for good";
  EXPECT_EQ(0u, trace.dropped());
}

TEST_F(TraceEventsTest, AFileThatCantBeWrittenIsNamed) {
  const TraceEvents trace(1);
  const std::string path = dir_.path() + "/missing/trace.json";
  const absl::Status status = trace.WriteChromeJson(path);
  EXPECT_TRUE(absl::IsNotFound(status)) << status;
  EXPECT_THAT(std::string(Message(status)), testing::HasSubstr(path));
}

}  // namespace
}  // namespace sluice
