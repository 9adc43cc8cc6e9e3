// offload/run/value_access.h
//
// Reads and writes whole tensors where they lie, chunk by chunk: for initial values, state_dict,
// checks. Several chunks are under way at a time, of one request or of several, as many as the
// pools have buffers for. A write of part of a chunk is a read, a change and a write, so a chunk is
// under way for one request at a time, in the order of the requests. Writing the master also renews
// the parameter copy. A frozen tensor has nothing but that copy: it stands for the master. A lent
// tensor's parameter is with the caller, so nothing is renewed. Writing a gradient replaces it, and
// renews nothing.
//
// Runs only while nothing else moves (the runtime sees to that), so all buffers are free for it. A
// chunk takes all that it needs before it begins, so none waits for another's.
//
// Threads: the control thread; conversions run on workers. Allocates per request.

#ifndef SLUICE_OFFLOAD_RUN_VALUE_ACCESS_H_
#define SLUICE_OFFLOAD_RUN_VALUE_ACCESS_H_

#include <deque>
#include <functional>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "offload/run/context.h"
#include "offload/run/whole_read.h"

namespace sluice {

struct ValueRequest {
  bool write = false;
  TensorIndex tensor;
  Field field = Field::kMaster;
  std::byte* data = nullptr;           // the tensor's elements in `type`; read from if `write`
  ElementType type = FloatType::kF32;  // bytes, if the unit's are
  // All fields of all that is kept of a chunk, of `tensor` among others: `data` is its image
  // (chunk_image.h), and field and type are not looked at.
  std::optional<ChunkIndex> image_of{};
  std::function<void(const absl::Status&)> done;

  bool of_gradient() const { return field == Field::kGrad; }
  bool of_parameter() const { return field == Field::kParam || field == Field::kMaster; }
  bool renews() const { return write && !of_gradient(); }  // the unit's parameters or states
};

class ValueAccess {
 public:
  explicit ValueAccess(const Context& context);
  ~ValueAccess();

  // `done` of the request is called on the control thread, in the order of the requests. A read
  // that fails leaves the others alone; a write that fails takes those begun after it with it.
  void Start(ValueRequest request);
  bool busy() const { return !requests_.empty(); }
  // WholeRead::Start.
  void ReadWhole(TensorIndex tensor, std::byte* to, FloatType type, WholeRead::Done done) {
    whole_read_.Start(tensor, to, type, std::move(done));
  }
  // Whether another request might begin something now. Those that wait for a chunk under way must
  // not keep others out that want another.
  bool hungry() const {
    return !saturated_ && !free_steps_.empty() &&
           requests_.size() < kRequestsPerStep * steps_.size();
  }
  // Tries again what found no buffer while nothing of this was under way: what other ranks need, or
  // have given, passes through the same buffers.
  void Retry() {
    if (std::exchange(starved_, false)) Pump();
  }
  bool Renews(UnitIndex unit) const;  // for a request whose `done` was not called yet

 private:
  static constexpr size_t kRequestsPerStep = 8;

  class ChunkStep;
  struct Request {
    ValueRequest asked;
    std::deque<ChunkIndex> left;  // not begun
    size_t under_way = 0;         // chunks
    absl::Status status;
  };

  void Pump();
  bool Begin(Request* request, ChunkIndex chunk);
  bool OthersMoveThings() const;
  void EndRequests();
  void EndChunk(ChunkStep* step, const absl::Status& status);
  void Fail(const Request* request, const absl::Status& status);

  const Context context_;
  WholeRead whole_read_;
  std::vector<std::unique_ptr<ChunkStep>> steps_;
  std::vector<ChunkStep*> free_steps_;
  std::deque<Request> requests_;
  bool saturated_ = false;       // a chunk waits for a step or for buffers
  bool starved_ = false;         // for buffers that others have
  std::vector<bool> under_way_;  // by chunk
  std::vector<bool> written_;    // by chunk: its blocks on NVMe hold something
};

}  // namespace sluice

#endif  // SLUICE_OFFLOAD_RUN_VALUE_ACCESS_H_
