// tests/optim/other_states.h
//
// State formats and an update rule that the product does not have: they show that nothing but a
// format knows how states lie, and nothing but a rule what is kept and how it is updated.

#ifndef SLUICE_TESTS_OPTIM_OTHER_STATES_H_
#define SLUICE_TESTS_OPTIM_OTHER_STATES_H_

#include <bit>
#include <cstring>
#include <memory>
#include <string>

#include "optim/convert.h"
#include "optim/update_rule.h"

namespace sluice::testing {

// bf16 arrays of what is not the master; the master's fp32 array is the last one.
class Bf16Moments final : public StateFormat {
 public:
  using StateFormat::StateFormat;
  static std::shared_ptr<const StateFormat> Make(std::span<const StateField> fields) {
    return std::make_shared<Bf16Moments>(fields);
  }

  std::string name() const override { return "bf16 moments"; }
  Bytes bytes(int64_t capacity, std::optional<FloatType>) const override {
    return Bytes(capacity * (4 + 2 * (static_cast<int64_t>(fields().size()) - 1)));
  }
  float* InPlace(const ChunkStates& chunk, size_t field) const override {
    if (field != kMasterIndex) return nullptr;
    return reinterpret_cast<float*>(Moment(chunk, fields().size()));
  }
  void Load(const ChunkStates& chunk, size_t field, int64_t at,
            std::span<float> values) const override {
    Convert(Moment(chunk, field) + 2 * at, FloatType::kBf16, values.data(), FloatType::kF32,
            values.size());
  }
  void Store(const ChunkStates& chunk, size_t field, int64_t at,
             std::span<const float> values) const override {
    Convert(values.data(), FloatType::kF32, Moment(chunk, field) + 2 * at, FloatType::kBf16,
            values.size());
  }

 private:
  static std::byte* Moment(const ChunkStates& chunk, size_t field) {
    return chunk.data + 2 * (static_cast<int64_t>(field) - 1) * chunk.capacity;
  }
};

// Of a master whose copy is bf16, what the copy does not say: the lower half of its bits, and the
// last bit of the upper half, which rounding may have changed. Three bytes, after the others' four.
class SplitMasters final : public StateFormat {
 public:
  using StateFormat::StateFormat;
  static std::shared_ptr<const StateFormat> Make(std::span<const StateField> fields) {
    return std::make_shared<SplitMasters>(fields);
  }

  std::string name() const override { return "split masters"; }
  Bytes bytes(int64_t capacity, std::optional<FloatType> param_type) const override {
    const auto others = static_cast<int64_t>(fields().size()) - 1;
    return Bytes(capacity * (4 * others + (reads_param(param_type) ? 3 : 4)));
  }
  bool reads_param(std::optional<FloatType> param_type) const override {
    return param_type == FloatType::kBf16;
  }
  float* InPlace(const ChunkStates& chunk, size_t field) const override {
    if (field == kMasterIndex && reads_param(chunk.param_type)) return nullptr;
    const size_t place = field == kMasterIndex ? fields().size() - 1 : field - 1;
    return reinterpret_cast<float*>(chunk.data) + place * static_cast<size_t>(chunk.capacity);
  }
  void Load(const ChunkStates& chunk, size_t field, int64_t at,
            std::span<float> values) const override {
    if (const float* const there = InPlace(chunk, field)) {
      std::memcpy(values.data(), there + at, values.size_bytes());
      return;
    }
    const Parts parts = PartsOf(chunk, at);
    for (size_t i = 0; i < values.size(); ++i) {
      uint16_t upper = parts.copy[i];
      if ((upper & 1) != parts.last_bit[i]) --upper;
      values[i] = std::bit_cast<float>(uint32_t{upper} << 16 | parts.lower[i]);
    }
  }
  void Store(const ChunkStates& chunk, size_t field, int64_t at,
             std::span<const float> values) const override {
    if (float* const there = InPlace(chunk, field)) {
      std::memcpy(there + at, values.data(), values.size_bytes());
      return;
    }
    const Parts parts = PartsOf(chunk, at);
    for (size_t i = 0; i < values.size(); ++i) {
      const auto bits = std::bit_cast<uint32_t>(values[i]);
      parts.lower[i] = static_cast<uint16_t>(bits);
      parts.last_bit[i] = bits >> 16 & 1;
      parts.copy[i] = FromFloat(values[i], FloatType::kBf16);
    }
  }

 private:
  struct Parts {
    uint16_t* copy;
    uint16_t* lower;
    uint8_t* last_bit;
  };
  Parts PartsOf(const ChunkStates& chunk, int64_t at) const {
    const auto others = static_cast<int64_t>(fields().size()) - 1;
    std::byte* const lower = chunk.data + 4 * others * chunk.capacity;
    return {.copy = reinterpret_cast<uint16_t*>(chunk.param) + at,
            .lower = reinterpret_cast<uint16_t*>(lower) + at,
            .last_bit = reinterpret_cast<uint8_t*>(lower + 2 * chunk.capacity) + at};
  }
};

// SGD with momentum, as PyTorch's single-tensor SGD computes it.
inline constexpr Field kMomentumBuffer{16};

struct SgdHyper {
  float lr = 1e-2f;
  float momentum = 0.9f;
  float weight_decay = 0;
};

class Sgd final : public UpdateRule {
 public:
  static std::shared_ptr<const UpdateRule> Make() { return std::make_shared<Sgd>(); }

  const char* name() const override { return "SGD"; }
  std::span<const StateField> fields() const override {
    static constexpr StateField kFields[] = {kMasterField, {kMomentumBuffer, "momentum_buffer"}};
    return kFields;
  }
  StepScalars Scalars(const Hyperparameters& hyper, int64_t step, float grad_scale) const override {
    return StepScalars::Of(Scaled{hyper.As<SgdHyper>(), grad_scale, step == 1});
  }
  void UpdateTile(const StepScalars& scalars, float* const* fields, const float* grad,
                  size_t n) const override {
    const auto s = scalars.As<Scaled>();
    float* const p = fields[kMasterIndex];
    float* const buffer = fields[1];
    for (size_t i = 0; i < n; ++i) {
      const float decayed = grad[i] * s.grad_scale + s.hyper.weight_decay * p[i];
      buffer[i] = s.first ? decayed : s.hyper.momentum * buffer[i] + decayed;
      p[i] = p[i] - s.hyper.lr * buffer[i];
    }
  }

 private:
  struct Scaled {
    SgdHyper hyper;
    float grad_scale = 1;
    bool first = false;
  };
};

}  // namespace sluice::testing

#endif  // SLUICE_TESTS_OPTIM_OTHER_STATES_H_
