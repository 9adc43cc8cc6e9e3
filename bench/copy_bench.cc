// Copies between pinned memory and HBM through the CUDA device, against a plain loop of
// cudaMemcpyAsync on cudaMallocHost's memory in the same run: interleaved, medians of several
// repetitions. Prints a table and, with --json FILE, the figures. Ends with 1 if a share for copies
// of at least 16 MiB is below --share (default 0.95), and with 77 where there is no GPU.

#include <cuda_runtime_api.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <fstream>
#include <string>
#include <vector>

#include "CLI/CLI.hpp"
#include "core/config.h"
#include "core/cuda_device.h"
#include "core/memory_resource.h"
#include "core/status.h"
#include "fmt/format.h"
#include "nlohmann/json.hpp"

namespace sluice {
namespace {

constexpr Bytes kBuffer = MiB(256);  // each way
constexpr Bytes kMoved = GiB(2);     // by one repetition, each way
constexpr Bytes kJudgedMin = MiB(16);

void CheckCuda(cudaError_t error) {
  SLUICE_CHECK_MSG(error == cudaSuccess, cudaGetErrorName(error));
}

enum class Way { kToDevice, kToHost, kBoth };
const char* Name(Way way) {
  return way == Way::kToDevice ? "to HBM" : way == Way::kToHost ? "to host" : "both ways";
}

// One buffer on either side, and copies of `size` from one to the other, again and again.
struct Lane {
  std::byte* host;
  std::byte* device;
  bool to_host;

  ConstMemoryView From(size_t at, size_t size) const {
    return {(to_host ? device : host) + at, size};
  }
  std::byte* To(size_t at) const { return (to_host ? host : device) + at; }
};

std::vector<Lane> LanesOf(Way way, std::byte* host, std::byte* device) {
  const Lane down{host, device, false};
  const Lane up{host + kBuffer.value(), device + kBuffer.value(), true};
  if (way == Way::kToDevice) return {down};
  if (way == Way::kToHost) return {up};
  return {down, up};
}

// Where in its buffers the copy with number `n` begins: whole ones only, from the start again when
// the next would run past the end.
size_t At(int64_t n, Bytes size) { return (size * (n % (kBuffer / size))).size(); }

double PlainSeconds(const std::vector<Lane>& lanes, Bytes size, cudaStream_t* streams) {
  const SteadyClock clock;
  const TimePoint begin = clock.Now();
  for (int64_t n = 0; n < kMoved / size; ++n) {
    const size_t at = At(n, size);
    for (size_t i = 0; i < lanes.size(); ++i) {
      CheckCuda(cudaMemcpyAsync(lanes[i].To(at), lanes[i].From(at, size.size()).data(), size.size(),
                                lanes[i].to_host ? cudaMemcpyDeviceToHost : cudaMemcpyHostToDevice,
                                streams[i]));
    }
  }
  for (size_t i = 0; i < lanes.size(); ++i) CheckCuda(cudaStreamSynchronize(streams[i]));
  return Seconds(clock.Now() - begin);
}

// Sleeps until woken.
class Bell final : public Waker {
 public:
  void Wake() override {
    rings_.fetch_add(1);
    rings_.notify_one();
  }
  void Wait(int seen) { rings_.wait(seen); }
  int rings() const { return rings_.load(); }

 private:
  std::atomic<int> rings_{0};
};

double DeviceSeconds(const std::vector<Lane>& lanes, Bytes size, Device* device) {
  struct Copy final : Event {
    void Handle() override {
      SLUICE_CHECK_MSG(op.status.ok(), Message(op.status));
      --*left;
    }
    DeviceOp op;
    int* left = nullptr;
  };
  Bell bell;
  Inbox inbox;
  inbox.SetWaker(&bell);
  const auto count = static_cast<size_t>(kMoved / size) * lanes.size();
  int left = static_cast<int>(count);
  std::vector<Copy> copies(count);
  const SteadyClock clock;
  const TimePoint begin = clock.Now();
  for (size_t i = 0; i < count; ++i) {
    const Lane& lane = lanes[i % lanes.size()];
    const size_t at = At(static_cast<int64_t>(i / lanes.size()), size);
    copies[i].left = &left;
    copies[i].op.stream = lane.to_host ? StreamKind::kDeviceToHost : StreamKind::kHostToDevice;
    copies[i].op.from = lane.From(at, size.size());
    copies[i].op.to = lane.To(at);
    copies[i].op.inbox = &inbox;
    copies[i].op.event = &copies[i];
    device->Enqueue(&copies[i].op);
  }
  while (left > 0) {
    const int seen = bell.rings();
    if (!inbox.HandleAll()) bell.Wait(seen);
  }
  return Seconds(clock.Now() - begin);
}

double Median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

int Run(const std::string& json_path, double share_min, int repetitions) {
  SteadyClock clock;
  absl::StatusOr<std::unique_ptr<Device>> device = MakeCudaDevice({}, &clock);
  if (!device.ok()) {
    fmt::print("skipped: no GPU can be used: {}\n", Message(device.status()));
    return 77;
  }
  HugePageResource memory;
  absl::StatusOr<Arena> pinned = Arena::Create(&memory, 2 * kBuffer);
  absl::StatusOr<Arena> hbm = (*device)->MakeHbmArena(2 * kBuffer);
  SLUICE_CHECK(pinned.ok() && hbm.ok());
  const absl::Status registered = (*device)->RegisterHost(pinned->memory());
  SLUICE_CHECK_MSG(registered.ok(), Message(registered));
  void* plain = nullptr;
  CheckCuda(cudaMallocHost(&plain, (2 * kBuffer).size()));
  std::memset(plain, 1, (2 * kBuffer).size());
  cudaStream_t streams[2];
  for (cudaStream_t& s : streams) CheckCuda(cudaStreamCreateWithFlags(&s, cudaStreamNonBlocking));

  fmt::print("{}\n{:>9} {:>10} {:>14} {:>14} {:>7}\n", (*device)->description(), "copy", "way",
             "plain GB/s", "device GB/s", "share");
  nlohmann::ordered_json rows = nlohmann::ordered_json::array();
  bool good = true;
  for (Bytes size : {KiB(96), MiB(1), MiB(16), MiB(64)}) {
    for (Way way : {Way::kToDevice, Way::kToHost, Way::kBoth}) {
      std::vector<double> theirs, ours;
      const std::vector<Lane> a =
          LanesOf(way, static_cast<std::byte*>(plain), hbm->memory().data());
      const std::vector<Lane> b = LanesOf(way, pinned->memory().data(), hbm->memory().data());
      for (int i = 0; i <= repetitions; ++i) {  // the first warms up
        const double p = PlainSeconds(a, size, streams);
        const double d = DeviceSeconds(b, size, device->get());
        if (i > 0) theirs.push_back(p), ours.push_back(d);
      }
      const double bytes =
          static_cast<double>(kMoved / size * size.value()) * static_cast<double>(a.size());
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
    std::ofstream(json_path) << nlohmann::ordered_json{{"device", (*device)->description()},
                                                       {"share_min", share_min},
                                                       {"rows", rows}}
                                    .dump(2)
                             << "\n";
  }
  for (cudaStream_t s : streams) CheckCuda(cudaStreamDestroy(s));
  device->reset();
  CheckCuda(cudaFreeHost(plain));
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
