// Headers of safetensors files, as `sluice plan --model` reads them.

#include <cstddef>
#include <cstdint>
#include <string>

#include "core/status.h"
#include "tools/safetensors_model.h"

using namespace sluice;         // NOLINT: the fuzzer's entry is outside the namespace
using namespace sluice::tools;  // NOLINT: likewise

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string text(reinterpret_cast<const char*>(data), size);
  const absl::StatusOr<SortedJson> header = ParseSortedObject(text, "the file");
  if (!header.ok()) return 0;
  const std::string type = TypeOfSafetensors(*header);
  SLUICE_CHECK(type.empty() || type == "bf16" || type == "fp16" || type == "fp32");
  const absl::StatusOr<HfModel> model = ModelOfSafetensors(*header, "the file");
  if (!model.ok()) return 0;
  int64_t parameters = 0;
  for (const ModelSpec::Tensor& tensor : model->spec.tensors) {
    SLUICE_CHECK(tensor.unit.value() < model->spec.units.size() && tensor.elements > 0);
    parameters += tensor.elements;
  }
  SLUICE_CHECK(parameters > 0 && parameters <= kElementsMax);
  return 0;
}
