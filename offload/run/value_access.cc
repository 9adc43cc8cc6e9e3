#include "offload/run/value_access.h"

#include <algorithm>
#include <utility>

#include "core/status.h"
#include "fmt/format.h"
#include "offload/run/value_step.h"

namespace sluice {

ValueAccess::ValueAccess(const Context& context)
    : context_(context),
      whole_read_(context),
      under_way_(context.layout->chunks().size(), false),
      written_(context.layout->chunks().size(), false) {
  // One for each buffer, and enough for the workers where values pass through none.
  const size_t steps =
      std::max({context.memory->state_buffers.count(), context.memory->param_buffers.count(),
                context.memory->grad_buffers.count(),
                2 * static_cast<size_t>(context.executor->concurrency())});
  for (size_t i = 0; i < (context.overlap ? steps : 1); ++i) {
    steps_.push_back(std::make_unique<ChunkStep>(this));
    free_steps_.push_back(steps_.back().get());
  }
}

ValueAccess::~ValueAccess() = default;

bool ValueAccess::Renews(UnitIndex unit) const {
  return std::any_of(requests_.begin(), requests_.end(), [&](const Request& request) {
    return request.asked.renews() && context_.layout->tensor(request.asked.tensor).unit == unit;
  });
}

void ValueAccess::Start(ValueRequest request) {
  const TensorIndex tensor = request.tensor;
  const UnitLayout& unit = context_.layout->unit(context_.layout->tensor(tensor).unit);
  requests_.push_back({.asked = std::move(request)});
  if (const auto& chunk = requests_.back().asked.image_of) requests_.back().left.push_back(*chunk);
  const uint32_t end = requests_.back().asked.image_of ? 0 : unit.first_chunk + unit.chunk_count;
  for (uint32_t c = unit.first_chunk; c < end; ++c) {
    for (const ChunkRun& run : context_.layout->runs(context_.layout->chunk(ChunkIndex(c)))) {
      if (run.tensor == tensor) requests_.back().left.push_back(ChunkIndex(c));
    }
  }
  Pump();
  EndRequests();  // this rank may keep nothing of the tensor
}

// Begins what can begin, in the order of the requests. A chunk that is under way for an earlier one
// is passed over; it is the first request that wants it which gets it next.
void ValueAccess::Pump() {
  saturated_ = false;
  for (Request& request : requests_) {
    for (auto chunk = request.left.begin(); chunk != request.left.end();) {
      if (under_way_[chunk->value()]) {
        ++chunk;
        continue;
      }
      if (!Begin(&request, *chunk)) {
        saturated_ = true;
        return;
      }
      chunk = request.left.erase(chunk);
    }
  }
}

// Whether other ranks' doings may take buffers here meanwhile: for shards that they need, or, on
// their way over a link, for gradients that they have come to.
bool ValueAccess::OthersMoveThings() const {
  const Sharding& sharding = context_.layout->sharding();
  return sharding.params || (sharding.ranks > 1 && !context_.placement->hbm_in_place);
}

// Returns false if there is no step, or no buffer, for the chunk: whatever ends next gives one.
bool ValueAccess::Begin(Request* request, ChunkIndex chunk) {
  if (free_steps_.empty()) return false;
  ChunkStep* step = free_steps_.back();
  if (!step->Take(request, chunk)) {
    starved_ = free_steps_.size() == steps_.size();
    SLUICE_CHECK_MSG(!starved_ || OthersMoveThings(),
                     "values are accessed while something else is on its way");
    return false;
  }
  free_steps_.pop_back();
  under_way_[chunk.value()] = true;
  ++request->under_way;
  step->Start();
  return true;
}

void ValueAccess::EndChunk(ChunkStep* step, const absl::Status& status) {
  Request* request = step->request();
  free_steps_.push_back(step);
  under_way_[step->chunk().value()] = false;
  --request->under_way;
  if (!status.ok()) Fail(request, status);
  Pump();
  EndRequests();
}

void ValueAccess::EndRequests() {
  while (busy() && requests_.front().left.empty() && requests_.front().under_way == 0) {
    const Request ended = std::move(requests_.front());
    requests_.pop_front();
    ended.asked.done(ended.status);
  }
}

// Nothing more begins of the request, nor, if it writes, of those behind it.
void ValueAccess::Fail(const Request* request, const absl::Status& status) {
  const absl::Status named =
      Annotate(status, fmt::format("{} tensor '{}'", request->asked.write ? "writing" : "reading",
                                   context_.layout->tensor(request->asked.tensor).name));
  bool reached = false;
  for (Request& other : requests_) {
    reached = reached || &other == request;
    if (!reached || (&other != request && !request->asked.write)) continue;
    if (other.status.ok()) other.status = named;
    other.left.clear();
  }
}

}  // namespace sluice
