#include "offload/run/reduction_trial.h"

#include <memory>
#include <utility>
#include <vector>

#include "comm/run_op.h"
#include "core/status.h"
#include "fmt/format.h"

namespace sluice {

absl::Status TryLibraryReduction(Communicator* gradients, const int32_t* give_up) {
  constexpr uint64_t kOfTrial = uint64_t{3} << 32;  // unlike any unit
  struct Values {
    std::vector<float> given;
    float sum = 0;
  };
  const uint32_t ranks = gradients->ranks();
  const auto value_of = [](uint32_t rank) { return static_cast<float>(1 + rank % 2); };
  float expected = 0;
  for (uint32_t r = 0; r < ranks; ++r) expected += value_of(r);
  auto values = std::make_unique<Values>();
  values->given.assign(ranks, value_of(gradients->rank().value()));
  std::vector<ConstMemoryView> send;
  for (const float& value : values->given) send.push_back(std::as_bytes(std::span(&value, 1)));
  const MemoryView receive = std::as_writable_bytes(std::span(&values->sum, 1));
  const std::vector<uint32_t> ends = EndsOfOneEach(ranks);
  CommOp op;
  op.kind = CommKind::kReduceScatter;
  op.type = FloatType::kF32;
  op.tag = kOfTrial;
  op.send = {send, ends};
  op.receive = {std::span(&receive, 1), {}};
  const absl::Status status = RunOp(&op, gradients, give_up);
  const float sum = values->sum;
  if (op.memory_lost) static_cast<void>(values.release());  // somebody may write there at any time
  const auto refused = [](std::string_view why) {
    return absl::FailedPreconditionError(
        fmt::format("reduction 'library': the ranks' communicator can't add up gradients itself "
                    "({}); 'ordered' asks no more of it than to exchange them",
                    why));
  };
  if (absl::IsUnimplemented(status) || absl::IsInvalidArgument(status))
    return refused(Message(status));
  SLUICE_RETURN_IF_ERROR(status);  // a rank that is gone or late says nothing of sums
  if (sum != expected) return refused(fmt::format("a sum of {} came to {}", expected, sum));
  return absl::OkStatus();
}

}  // namespace sluice
