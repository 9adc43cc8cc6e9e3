#include "tools/model_shape.h"

#include <charconv>
#include <string>
#include <system_error>

#include "fmt/format.h"

namespace sluice::tools {

namespace {

void AddBlock(int64_t index, int64_t h, SpecBuilder* builder) {
  builder->Unit(fmt::format("block{}", index));
  builder->Tensor("norm1", {2, h});
  builder->Linear("attention", h, 3 * h);
  builder->Linear("projection", h, h);
  builder->Tensor("norm2", {2, h});
  builder->Linear("mlp.up", h, 4 * h);
  builder->Linear("mlp.down", 4 * h, h);
}

constexpr int64_t kCountMax = 1'000'000'000'000'000;

bool IsDigit(char c) { return c >= '0' && c <= '9'; }

absl::Status Wrong(const std::string& message) { return absl::InvalidArgumentError(message); }

ModelSpec EqualUnits(int64_t params, int64_t layers) {
  SpecBuilder builder;
  for (int64_t i = 0; i < layers; ++i) {
    builder.Unit(fmt::format("unit{}", i));
    builder.Tensor("weight", {params / layers + (i < params % layers ? 1 : 0)});
  }
  return builder.Take();
}

}  // namespace

absl::StatusOr<ModelSpec> MakeModelSpec(const ModelShape& shape) {
  const int64_t layers = shape.layers > 0 ? shape.layers : kLayersDefault;
  const int64_t h = shape.hidden;
  if (layers > 100'000 || h > 1'000'000 || shape.vocab > 1'000'000'000) {
    return Wrong("at most 100000 layers, hidden 1000000, and 1e9 words can be planned");
  }
  if (h == 0 && shape.params == 0) {
    return Wrong("give --params, or --layers and --hidden, or all three");
  }
  if (shape.params > 0 && shape.vocab > 0) {
    return Wrong("--params and --vocab both say how large the embedding is: give one of them");
  }
  if (h == 0 && shape.vocab > 0) return Wrong("--vocab needs --hidden");
  const double blocks = static_cast<double>(layers) * 12.0 * static_cast<double>(h * h);
  if (shape.params > kParamsMax || blocks > static_cast<double>(kParamsMax)) {
    return Wrong("at most 16T parameters can be planned");
  }
  if (h == 0) {
    if (shape.params < layers) {
      return Wrong(fmt::format("{} parameters can't make {} units", shape.params, layers));
    }
    return EqualUnits(shape.params, layers);
  }
  const int64_t rest = layers * (12 * h * h + 13 * h) + 2 * h;
  if (shape.params > 0 && shape.params <= rest) {
    return Wrong(fmt::format(
        "{} layers of hidden size {} have {} parameters already, which leaves nothing of {} for "
        "the embedding",
        layers, h, rest, shape.params));
  }
  const int64_t vocab = shape.vocab > 0 ? shape.vocab : kVocabDefault;
  SpecBuilder builder;
  builder.Unit("embedding");
  if (shape.params > 0) {
    builder.Tensor("weight", {shape.params - rest});
  } else {
    builder.Tensor("weight", {vocab, h});
  }
  for (int64_t i = 0; i < layers; ++i) AddBlock(i, h, &builder);
  builder.Unit("norm");
  builder.Tensor("weight", {2, h});
  if (builder.too_large()) return Wrong("at most 16T parameters can be planned");
  return builder.Take();
}

absl::StatusOr<int64_t> ParseCount(std::string_view text) {
  const auto wrong = [text](std::string_view why) {
    return Wrong(
        fmt::format("'{}' is not a count{}; write it like 7B, 350M, 7e9 or 124439808", text, why));
  };
  // Digits without the point, and the power of ten that they are to be taken times.
  int64_t digits = 0;
  int power = 0;
  size_t at = 0;
  bool any = false, point = false;
  for (; at < text.size(); ++at) {
    const char c = text[at];
    if (c == '.' && !point) {
      point = true;
    } else if (c == '_' && any && !point && at + 1 < text.size() && IsDigit(text[at + 1]) &&
               IsDigit(text[at - 1])) {
      continue;
    } else if (IsDigit(c)) {
      any = true;
      if (digits > kCountMax) return wrong("");
      digits = digits * 10 + (c - '0');
      power -= point ? 1 : 0;
    } else {
      break;
    }
  }
  if (!any) return wrong("");
  const std::string_view rest = text.substr(at);
  constexpr std::string_view kLetters = "kmbtKMBT";
  if (rest.size() == 1 && kLetters.find(rest[0]) != std::string_view::npos) {
    power += static_cast<int>(kLetters.find(rest[0]) % 4 + 1) * 3;
  } else if (!rest.empty()) {
    if (rest[0] != 'e' && rest[0] != 'E') return wrong("");
    const std::string_view tens = rest.substr(rest.size() > 1 && rest[1] == '+' ? 2 : 1);
    uint32_t exponent = 0;
    const auto [end, error] = std::from_chars(tens.data(), tens.data() + tens.size(), exponent, 10);
    if (error != std::errc() || end != tens.data() + tens.size() || exponent > 99) return wrong("");
    power += static_cast<int>(exponent);
  }
  for (; power < 0 && digits % 10 == 0 && digits > 0; ++power) digits /= 10;
  if (power < 0 && digits > 0) return wrong(", which is whole");
  for (; power > 0 && digits <= kCountMax && digits > 0; --power) digits *= 10;
  if (digits < 1 || digits > kCountMax) return wrong("");
  return digits;
}

}  // namespace sluice::tools
