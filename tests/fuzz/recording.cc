// Traces with a recorded step, as `sluice trace` reads them: of what is taken a plan can be made,
// or is refused, and every call is one that a runtime can be given.

#include "offload/sim/recording.h"

#include <cstddef>
#include <cstdint>
#include <string>

#include "core/status.h"
#include "tools/recorded_run.h"

using namespace sluice;  // NOLINT: the fuzzer's entry is outside the namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string text(reinterpret_cast<const char*>(data), size);
  const absl::StatusOr<Recording> recording = tools::ParseRecordedRun(text, "input");
  if (!recording.ok()) return 0;
  const Recording& r = *recording;
  SLUICE_CHECK(!r.calls.empty() && r.calls.back().kind == RecordedCall::Kind::kStep);
  for (size_t i = 0; i < r.calls.size(); ++i) {
    const RecordedCall& call = r.calls[i];
    SLUICE_CHECK(call.own >= Nanos(0));
    using enum RecordedCall::Kind;
    if (call.kind == kWait) SLUICE_CHECK(call.index < static_cast<int64_t>(i));
    if (call.kind == kAcquire || call.kind == kRelease)
      SLUICE_CHECK(call.index < static_cast<int64_t>(r.spec.units.size()));
    if (call.kind == kGrads || call.kind == kMoreGrads)
      SLUICE_CHECK(call.index < static_cast<int64_t>(r.spec.tensors.size()));
  }
  int64_t chunks = 0;
  for (const ModelSpec::Tensor& tensor : r.spec.tensors)
    chunks += tensor.elements / r.config.chunk_elements;
  if (chunks > 1 << 12) return 0;  // slow, and nothing new
  const absl::StatusOr<Plan> plan = MakePlan(r.spec, r.config);
  SLUICE_CHECK(!plan.ok() || plan->layout.units().size() == r.spec.units.size());
  return 0;
}
