// offload/value_access.h
//
// Reads and writes whole tensors where they lie, chunk by chunk, one tensor after another: for
// initial values, state_dict, checks. Runs only while nothing else moves (the Runtime sees to
// that): a write of part of a chunk is a read, a change and a write. Writing the master also renews
// the parameter copy. A frozen tensor has nothing but that copy: it stands for the master. A lent
// tensor's parameter is with the caller, so nothing is renewed.
//
// Threads: the control thread; conversions run on workers. Allocates per request.

#ifndef SLUICE_OFFLOAD_VALUE_ACCESS_H_
#define SLUICE_OFFLOAD_VALUE_ACCESS_H_

#include <deque>
#include <functional>
#include <memory>
#include <vector>

#include "offload/context.h"

namespace sluice {

enum class Field : uint8_t { kParam = 0, kMaster = 1, kExpAvg = 2, kExpAvgSq = 3, kGrad = 4 };

struct ValueRequest {
  bool write = false;
  TensorIndex tensor;
  Field field = Field::kMaster;
  std::byte* data = nullptr;  // the tensor's elements in `type`; read from if `write`
  FloatType type = FloatType::kF32;
  std::function<void(const absl::Status&)> done;
};

class ValueAccess {
 public:
  explicit ValueAccess(const Context& context);
  ~ValueAccess();

  // One at a time. `done` of the request is called on the control thread.
  void Start(ValueRequest request);
  bool busy() const { return busy_; }

 private:
  class ChunkStep;
  void NextChunk();
  void End(const absl::Status& status);

  const Context context_;
  std::unique_ptr<ChunkStep> step_;
  ValueRequest request_;
  uint32_t next_chunk_ = 0;
  uint32_t last_chunk_ = 0;
  bool busy_ = false;
  std::vector<bool> written_;  // by chunk: its blocks on NVMe hold something
};

}  // namespace sluice

#endif  // SLUICE_OFFLOAD_VALUE_ACCESS_H_
