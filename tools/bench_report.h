// tools/bench_report.h
//
// What `sluice bench` says, whichever benchmark it is: where it was measured, and cases. Written
// and read as JSON, whose keys stay as they are, and printed as a page.
//
// Keys of a benchmark's report:
//   sluice_bench                 version of these keys: 1
//   benchmark                    adam, copy, control or io
//   setup.commit                 that the program was built from; null: not known
//   setup.version                of Sluice
//   setup.cpu                    its model
//   setup.cores                  that may be used
//   setup.kernel                 the operating system's
//   setup.file_system            of the files measured; null: none were
//   setup.device                 what was copied to or computed on; null: only the CPU
//   setup.code_path              which of several was measured: engine, vector target
//   cases                        what was measured
//   cases.name                   by which two reports are compared
//   cases.unit                   of value, limit and peer; /s: more is better; else less is
//   cases.value                  median of the rounds; null: not measured, note says why
//   cases.limit                  likewise, of what can't be done better, measured in turn
//   cases.limit_is               what that is, in words
//   cases.peer                   likewise, of another program
//   cases.peer_is                what that is, in words
//   cases.ratio_to_limit         value / limit, median of the rounds
//   cases.ratio_to_peer          value / peer, likewise
//   cases.spread                 quartile to quartile of the rounds' values, as a part of value
//   cases.cpu_s_per_gb           seconds of the cores' time for 10^9 bytes
//   cases.peer_cpu_s_per_gb      likewise, the peer's
//   cases.p50_us                 of one transfer, half of them took less
//   cases.p99_us                 likewise, all but one of a hundred
//   cases.note                   what else is to be known
//   notes                        of the whole

#ifndef SLUICE_TOOLS_BENCH_REPORT_H_
#define SLUICE_TOOLS_BENCH_REPORT_H_

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "tools/json_file.h"

namespace sluice::tools {

struct BenchSetup {
  std::string commit;  // empty texts are null in JSON
  std::string version;
  std::string cpu;
  int64_t cores = 1;
  std::string kernel;
  std::string file_system;
  std::string device;
  std::string code_path;

  friend bool operator==(const BenchSetup&, const BenchSetup&) = default;
};

// Of this machine and program; what a benchmark knows itself is still empty.
BenchSetup DetectBenchSetup();

struct BenchCase {
  std::string name;
  std::string unit;  // BetterOf knows it
  std::optional<double> value = {};
  std::optional<double> limit = {};
  std::string limit_is = {};  // empty texts are null in JSON
  std::optional<double> peer = {};
  std::string peer_is = {};
  std::optional<double> ratio_to_limit = {};
  std::optional<double> ratio_to_peer = {};
  std::optional<double> spread = {};
  std::optional<double> cpu_s_per_gb = {};
  std::optional<double> peer_cpu_s_per_gb = {};
  std::optional<double> p50_us = {};
  std::optional<double> p99_us = {};
  std::string note = {};

  friend bool operator==(const BenchCase&, const BenchCase&) = default;
};

struct BenchReport {
  std::string benchmark;
  BenchSetup setup;
  std::vector<BenchCase> cases;
  std::vector<std::string> notes;

  friend bool operator==(const BenchReport&, const BenchReport&) = default;
};

// ---- From rounds to a case: all that is compared is measured in turn, again and again.

// Neither may be empty.
double Median(std::vector<double> values);
double QuartileSpread(std::vector<double> values);  // as a part of the median

struct BenchRounds {
  std::vector<double> own;    // at least one
  std::vector<double> limit;  // as many, or none
  std::vector<double> peer;   // likewise
};
// Values, ratios and spread of `rounds`; the rest is for the caller to say.
BenchCase MakeCase(std::string name, std::string unit, const BenchRounds& rounds);

// ---- Written and read

enum class Better { kMore, kLess };
// By the unit: none if it isn't one that these reports have.
std::optional<Better> BetterOf(std::string_view unit);

Json BenchJson(const BenchReport& report);
// The report that `json` is; every key must be there and no other, names once. `source`: for
// messages. Errors: InvalidArgument naming source and key.
absl::StatusOr<BenchReport> ParseBenchReport(const Json& json, const std::string& source);
// Of a file. Errors: likewise, and those of reading it.
absl::StatusOr<BenchReport> ReadBenchReport(const std::string& path);

// For people.
std::string BenchPage(const BenchReport& report);

// "12.3", "0.0123", "1,230,000": four figures at most matter.
std::string FigureText(double value);

}  // namespace sluice::tools

#endif  // SLUICE_TOOLS_BENCH_REPORT_H_
