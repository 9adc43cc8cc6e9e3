// A training loop of its own over Sluice's C++ wrapper, with two threads: one computes, the other
// hands gradients over while the next layer's are computed, as a framework's communication thread
// would.
//
//   embed_cpp      swaps in a directory of its own under TMPDIR (or /tmp), which it removes again
//
// The same training runs twice, once with room for everything in RAM and once with memory for one
// layer at a time, and must end with the same bits. Prints one line; exits with 0 if all is so.

#include <stdlib.h>
#include <unistd.h>

#include <cmath>
#include <condition_variable>
#include <cstdio>
#include <cstring>
#include <deque>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "sluice/sluice.hpp"

namespace {

constexpr int kLayers = 4;
constexpr int kWidth = 96;
constexpr int kBatch = 8;
constexpr int kSteps = 25;

[[noreturn]] void Fail(const std::string& why) {
  std::fprintf(stderr, "embed_cpp: %s\n", why.c_str());
  std::exit(1);
}

void Check(const sluice::Status& status) {
  if (!status.ok()) Fail(status.message());
}

template <typename T>
T Value(sluice::Result<T> result) {
  Check(result.status());
  return std::move(*result);
}

using Batch = std::vector<float>;  // kBatch rows of kWidth

// The thread that hands gradients over. Two buffers: one is filled while the other is taken.
class GradientSender {
 public:
  explicit GradientSender(sluice::Runtime* runtime) : runtime_(runtime) {
    for (int i = 0; i < 2; ++i) free_.emplace_back(kWidth * kWidth);
    thread_ = std::thread([this] { Run(); });
  }
  ~GradientSender() {
    {
      const std::lock_guard lock(mutex_);
      stopping_ = true;
    }
    changed_.notify_all();
    thread_.join();
  }

  // A buffer to fill, all zero; waits for one.
  std::vector<float> Buffer() {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [this] { return !free_.empty(); });
    std::vector<float> buffer = std::move(free_.front());
    free_.pop_front();
    std::fill(buffer.begin(), buffer.end(), 0.0f);
    return buffer;
  }
  void Send(sluice::Tensor tensor, std::vector<float> gradient) {
    {
      const std::lock_guard lock(mutex_);
      waiting_.push_back({tensor, std::move(gradient)});
    }
    changed_.notify_all();
  }
  // Until all that was sent has been taken.
  void Flush() {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [this] { return free_.size() == 2; });
    Check(status_);
  }

 private:
  struct Gradient {
    sluice::Tensor tensor;
    std::vector<float> values;
  };
  void Run() {
    std::unique_lock lock(mutex_);
    for (;;) {
      changed_.wait(lock, [this] { return stopping_ || !waiting_.empty(); });
      if (waiting_.empty()) return;
      Gradient gradient = std::move(waiting_.front());
      waiting_.pop_front();
      lock.unlock();
      const sluice::Status status =
          runtime_->Wait(runtime_->Grad(gradient.tensor, gradient.values));
      lock.lock();
      if (status_.ok()) status_ = status;
      free_.push_back(std::move(gradient.values));
      changed_.notify_all();
    }
  }

  sluice::Runtime* const runtime_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<std::vector<float>> free_;  // these four: guarded by mutex_
  std::deque<Gradient> waiting_;
  sluice::Status status_;
  bool stopping_ = false;
  std::thread thread_;
};

// Square layers with tanh between them; a unit with one tensor each.
class Network {
 public:
  explicit Network(const sluice::Options& options) : runtime_(Make(options)) {
    std::vector<float> initial(kWidth * kWidth);
    uint32_t seed = 1;
    for (const sluice::Tensor tensor : tensors_) {
      for (float& value : initial) {
        seed = seed * 1664525u + 1013904223u;
        value = (static_cast<float>(seed >> 8) / 8388608.0f - 1.0f) * 0.15f;
      }
      Check(runtime_.Wait(runtime_.Write(tensor, sluice::Field::kMaster, initial)));
    }
  }

  // One step on `input`; returns the loss before it.
  double Step(const Batch& input, const Batch& target) {
    Check(runtime_.BeginIteration(0, sluice::Iteration::kBoundary));
    Forward(input);
    double loss = 0;
    Batch back(target.size());
    for (size_t i = 0; i < target.size(); ++i) {
      const float error = outputs_.back()[i] - target[i];
      loss += static_cast<double>(error) * error / static_cast<double>(target.size());
      back[i] = 2 * error / static_cast<float>(target.size());
    }
    for (int layer = kLayers - 1; layer >= 0; --layer) back = Backward(layer, back);
    sender_.Flush();
    Check(runtime_.EndIteration());

    sluice_group group = {sizeof(group), 3e-3, 0.9, 0.999, 1e-8, 0.0, 0, 1};
    Check(runtime_.Wait(runtime_.Step({&group, 1}, /*clip_norm=*/1.0)));
    if (Value(runtime_.LastStep()).applied == 0) Fail("a step was skipped");
    return loss;
  }

  std::vector<float> Parameters() {
    std::vector<float> all(kLayers * kWidth * kWidth);
    for (size_t l = 0; l < kLayers; ++l) {
      const std::span<float> part(all.data() + l * kWidth * kWidth, kWidth * kWidth);
      Check(runtime_.Wait(runtime_.Read(tensors_[l], sluice::Field::kMaster, part)));
    }
    return all;
  }
  std::string Report() { return Value(runtime_.ReportJson()); }

 private:
  sluice::Runtime Make(const sluice::Options& options) {
    sluice::Model model = Value(sluice::Model::Create());
    for (int l = 0; l < kLayers; ++l) {
      const std::string name = "layer" + std::to_string(l);
      units_.push_back(Value(model.AddUnit(name.c_str())));
      tensors_.push_back(Value(model.AddTensor(units_.back(), name.c_str(), kWidth * kWidth)));
    }
    return Value(sluice::Runtime::Create(model, options));
  }

  // The layer's weights, which stay in place while the view lives.
  sluice::UnitView Acquire(int layer) {
    Check(runtime_.Wait(runtime_.Acquire(units_[static_cast<size_t>(layer)])));
    return Value(runtime_.View(units_[static_cast<size_t>(layer)]));
  }

  void Forward(const Batch& input) {
    outputs_.assign(1, input);
    for (int layer = 0; layer < kLayers; ++layer) {
      const sluice::UnitView view = Acquire(layer);
      const float* weight = view.f32().data();
      const Batch& in = outputs_.back();
      Batch out(in.size());
      for (int n = 0; n < kBatch; ++n) {
        for (int o = 0; o < kWidth; ++o) {
          float sum = 0;
          for (int i = 0; i < kWidth; ++i) sum += weight[o * kWidth + i] * in[n * kWidth + i];
          out[n * kWidth + o] = std::tanh(sum);
        }
      }
      Check(runtime_.Release(units_[static_cast<size_t>(layer)]));
      outputs_.push_back(std::move(out));
    }
  }

  // From the loss by this layer's outputs to the loss by its inputs; its gradient goes to the
  // sender.
  Batch Backward(int layer, const Batch& back) {
    const Batch& in = outputs_[static_cast<size_t>(layer)];
    const Batch& out = outputs_[static_cast<size_t>(layer) + 1];
    Batch result(in.size(), 0.0f);
    std::vector<float> gradient = sender_.Buffer();
    const sluice::UnitView view = Acquire(layer);
    const float* weight = view.f32().data();
    for (int n = 0; n < kBatch; ++n) {
      for (int o = 0; o < kWidth; ++o) {
        const float y = out[n * kWidth + o];
        const float d = back[n * kWidth + o] * (1 - y * y);
        for (int i = 0; i < kWidth; ++i) {
          gradient[o * kWidth + i] += d * in[n * kWidth + i];
          result[n * kWidth + i] += d * weight[o * kWidth + i];
        }
      }
    }
    Check(runtime_.Release(units_[static_cast<size_t>(layer)]));
    sender_.Send(tensors_[static_cast<size_t>(layer)], std::move(gradient));
    return result;
  }

  std::vector<sluice::Unit> units_;
  std::vector<sluice::Tensor> tensors_;
  std::vector<Batch> outputs_;  // by layer, the input first
  sluice::Runtime runtime_;
  GradientSender sender_{&runtime_};
};

struct Outcome {
  double first = 0, last = 0;
  std::vector<float> parameters;
  std::string report;
};

Outcome Train(const sluice::Options& options) {
  Network network(options);
  Batch input(kBatch * kWidth), target(kBatch * kWidth);
  for (size_t i = 0; i < input.size(); ++i) {
    input[i] = std::sin(0.37f * static_cast<float>(i));
    target[i] = 0.8f * std::sin(0.11f * static_cast<float>(i) + 1);
  }
  Outcome outcome;
  for (int step = 0; step < kSteps; ++step) {
    outcome.last = network.Step(input, target);
    if (step == 0) outcome.first = outcome.last;
  }
  outcome.parameters = network.Parameters();
  outcome.report = network.Report();
  return outcome;
}

}  // namespace

int main() {
  const char* temp = std::getenv("TMPDIR");
  std::string directory = std::string(temp != nullptr ? temp : "/tmp") + "/sluice-embed-XXXXXX";
  if (mkdtemp(directory.data()) == nullptr) Fail("no directory can be made under TMPDIR");
  const char* const paths[] = {directory.c_str()};

  sluice::Options roomy;
  roomy.device = SLUICE_DEVICE_HOST;  // the loops above read parameters where they are
  roomy.hbm_bytes = 1 << 20;
  roomy.pinned_bytes = 4 << 20;
  sluice::Options tight;
  tight.device = SLUICE_DEVICE_HOST;
  tight.hbm_bytes = 2 * kWidth * kWidth * 4;  // two of four layers
  tight.pinned_bytes = 330 << 10;             // gradients and buffers; states go to the drive
  tight.nvme_paths = paths;
  tight.nvme_path_count = 1;
  tight.chunk_elements = 4096;
  tight.resident_elements_max = 0;
  tight.workers = 2;

  const Outcome whole = Train(roomy);
  const Outcome swapped = Train(tight);
  if (rmdir(directory.c_str()) != 0) Fail("something was left in " + directory);
  if (whole.report.find("\"nvme_read_bytes\": 0,") == std::string::npos)
    Fail("the first run should need no drive");
  if (swapped.report.find("\"nvme_read_bytes\": 0,") != std::string::npos)
    Fail("the second run should need a drive");
  if (!(whole.last < whole.first / 2)) Fail("the loss did not fall");
  const size_t bytes = whole.parameters.size() * sizeof(float);
  if (std::memcmp(whole.parameters.data(), swapped.parameters.data(), bytes) != 0)
    Fail("the two runs ended with different parameters");
  std::printf("embed_cpp: %d steps, loss %.4f -> %.4f, the same bits from RAM and from the drive\n",
              kSteps, whole.first, whole.last);
  return 0;
}
