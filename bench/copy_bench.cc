// Copies between pinned memory and HBM through the CUDA device, against a plain loop of
// cudaMemcpyAsync on cudaMallocHost's memory in the same run: interleaved, medians of several
// repetitions. Prints a table and, with --json FILE, the figures. Ends with 1 if a share for copies
// of at least 16 MiB is below --share (default 0.95), and with 77 where there is no GPU.

#include <algorithm>
#include <fstream>
#include <string>
#include <vector>

#include "CLI/CLI.hpp"
#include "core/config.h"
#include "core/status.h"
#include "fmt/format.h"
#include "nlohmann/json.hpp"
#include "tools/gpu_copies.h"

namespace sluice {
namespace {

using Way = tools::CopyWay;

constexpr Bytes kMoved = GiB(2);  // by one repetition, each way
constexpr Bytes kJudgedMin = MiB(16);

double Median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

int Run(const std::string& json_path, double share_min, int repetitions) {
  const auto copies = tools::MakeGpuCopies(0);
  if (!copies.ok()) {
    fmt::print("skipped: no GPU can be used: {}\n", Message(copies.status()));
    return 77;
  }
  fmt::print("{}\n{:>9} {:>10} {:>14} {:>14} {:>7}\n", (*copies)->description(), "copy", "way",
             "plain GB/s", "device GB/s", "share");
  nlohmann::ordered_json rows = nlohmann::ordered_json::array();
  bool good = true;
  for (Bytes size : {KiB(96), MiB(1), MiB(16), MiB(64)}) {
    for (Way way : {Way::kToDevice, Way::kToHost, Way::kBoth}) {
      std::vector<double> theirs, ours;
      for (int i = 0; i <= repetitions; ++i) {  // the first warms up
        const double p = (*copies)->PlainSeconds(way, size, kMoved / size);
        const double d = (*copies)->DeviceSeconds(way, size, kMoved / size);
        if (i > 0) theirs.push_back(p), ours.push_back(d);
      }
      const double bytes =
          static_cast<double>(kMoved / size * size.value()) * (way == Way::kBoth ? 2 : 1);
      const double share = Median(theirs) / Median(ours);
      const bool judged = size >= kJudgedMin;
      good = good && (!judged || share >= share_min);
      fmt::print("{:>9} {:>10} {:>14.2f} {:>14.2f} {:>7.3f}{}\n", FormatBytes(size), Name(way),
                 bytes / Median(theirs) / 1e9, bytes / Median(ours) / 1e9, share,
                 judged && share < share_min ? "  below the goal" : "");
      rows.push_back({{"copy_bytes", size.value()},
                      {"way", Name(way)},
                      {"plain_seconds", theirs},
                      {"device_seconds", ours},
                      {"moved_bytes", bytes},
                      {"share", share}});
    }
  }
  if (!json_path.empty()) {
    std::ofstream(json_path) << nlohmann::ordered_json{{"device", (*copies)->description()},
                                                       {"share_min", share_min},
                                                       {"rows", rows}}
                                    .dump(2)
                             << "\n";
  }
  return good ? 0 : 1;
}

}  // namespace
}  // namespace sluice

int main(int argc, char** argv) {
  CLI::App app("Copy rates of the CUDA device against a plain loop");
  std::string json;
  double share = 0.95;
  int repetitions = 5;
  app.add_option("--json", json, "write the figures here");
  app.add_option("--share", share, "the least share of the plain loop's rate");
  app.add_option("--repetitions", repetitions, "of each measurement");
  CLI11_PARSE(app, argc, argv);
  return sluice::Run(json, share, repetitions);
}
