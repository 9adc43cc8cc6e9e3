#include "optim/state_format.h"

#include <algorithm>
#include <array>
#include <cstring>

#include "core/status.h"
#include "optim/convert.h"
#include "optim/tiles.h"

namespace sluice {

namespace {

class Fp32States final : public StateFormat {
 public:
  using StateFormat::StateFormat;

  std::string name() const override { return "fp32"; }
  Bytes bytes(int64_t capacity, std::optional<FloatType> param_type) const override {
    return Bytes(capacity * columns(param_type) * static_cast<int64_t>(sizeof(float)));
  }
  uint32_t columns(std::optional<FloatType> param_type) const override {
    return static_cast<uint32_t>(fields().size()) - (reads_param(param_type) ? 1 : 0);
  }
  bool reads_param(std::optional<FloatType> param_type) const override {
    return param_type.value_or(FloatType::kBf16) == FloatType::kF32;
  }
  float* InPlace(const ChunkStates& chunk, size_t field) const override {
    const bool elsewhere = reads_param(chunk.param_type);
    if (elsewhere && field == kMasterIndex) return reinterpret_cast<float*>(chunk.param);
    const size_t column = elsewhere ? field - 1 : field;
    return reinterpret_cast<float*>(chunk.data) + column * static_cast<size_t>(chunk.capacity);
  }
  bool all_in_place() const override { return true; }
  void Load(const ChunkStates& chunk, size_t field, int64_t at,
            std::span<float> values) const override {
    std::memcpy(values.data(), InPlace(chunk, field) + at, values.size_bytes());
  }
  void Store(const ChunkStates& chunk, size_t field, int64_t at,
             std::span<const float> values) const override {
    std::memcpy(InPlace(chunk, field) + at, values.data(), values.size_bytes());
  }
};

}  // namespace

StateFormat::StateFormat(std::span<const StateField> fields)
    : fields_(fields.begin(), fields.end()) {
  SLUICE_CHECK(!fields_.empty() && fields_.size() <= kStateFieldsMax);
  SLUICE_CHECK(fields_[kMasterIndex].id == Field::kMaster);
}

std::optional<size_t> StateFormat::Find(Field id) const {
  const auto found = std::find_if(fields_.begin(), fields_.end(),
                                  [id](const StateField& field) { return field.id == id; });
  if (found == fields_.end()) return std::nullopt;
  return static_cast<size_t>(found - fields_.begin());
}

bool StateFormat::reads_param(std::optional<FloatType>) const { return false; }

float* StateFormat::InPlace(const ChunkStates&, size_t) const { return nullptr; }

bool StateFormat::all_in_place() const { return false; }

void StateFormat::Read(const ChunkStates& chunk, size_t field, int64_t at, void* values,
                       FloatType type, size_t n) const {
  if (const float* const there = InPlace(chunk, field))
    return Convert(there + at, FloatType::kF32, values, type, n);
  auto* const out = static_cast<std::byte*>(values);
  alignas(64) std::array<float, kTile> tile;
  ForTiles(n, [&](size_t i, size_t count) {
    Load(chunk, field, at + static_cast<int64_t>(i), std::span(tile).first(count));
    Convert(tile.data(), FloatType::kF32, out + i * static_cast<size_t>(SizeOf(type)), type, count);
  });
}

void StateFormat::Write(const ChunkStates& chunk, size_t field, int64_t at, const void* values,
                        FloatType type, size_t n) const {
  if (float* const there = InPlace(chunk, field))
    return Convert(values, type, there + at, FloatType::kF32, n);
  const auto* const in = static_cast<const std::byte*>(values);
  alignas(64) std::array<float, kTile> tile;
  ForTiles(n, [&](size_t i, size_t count) {
    Convert(in + i * static_cast<size_t>(SizeOf(type)), type, tile.data(), FloatType::kF32, count);
    Store(chunk, field, at + static_cast<int64_t>(i), std::span(tile).first(count));
  });
}

void StateFormat::Adopt(const ChunkStates& chunk, int64_t at, const void* param, FloatType type,
                        size_t n) const {
  if (float* const master = InPlace(chunk, kMasterIndex))
    return AdoptChanged(param, type, master + at, n);
  const auto* const in = static_cast<const std::byte*>(param);
  alignas(64) std::array<float, kTile> tile;
  ForTiles(n, [&](size_t i, size_t count) {
    const std::span<float> masters = std::span(tile).first(count);
    Load(chunk, kMasterIndex, at + static_cast<int64_t>(i), masters);
    AdoptChanged(in + i * static_cast<size_t>(SizeOf(type)), type, masters.data(), count);
    Store(chunk, kMasterIndex, at + static_cast<int64_t>(i), masters);
  });
}

std::shared_ptr<const StateFormat> MakeFp32States(std::span<const StateField> fields) {
  return std::make_shared<Fp32States>(fields);
}

}  // namespace sluice
