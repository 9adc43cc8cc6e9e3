// optim/update_rule.h
//
// An update rule: what an optimizer keeps of each parameter, and how a gradient changes it. Its
// hyperparameters and the scalars that it makes of them are known to it alone; others carry them
// (RuleValue). How states lie is the format's (state_format.h), so every rule works with every
// format, in tiles of fp32; a pair that matters has a kernel of its own, one pass over the states
// as they lie. StateUpdate is such a pair: what the runtime calls.
//
// Threads: any; rules are immutable, and their functions touch what they are given only. They
// allocate nothing.

#ifndef SLUICE_OPTIM_UPDATE_RULE_H_
#define SLUICE_OPTIM_UPDATE_RULE_H_

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <span>
#include <type_traits>

#include "absl/status/status.h"
#include "core/checksum.h"
#include "core/grid.h"
#include "core/status.h"
#include "optim/state_format.h"

namespace sluice {

// A small value of a type that only a rule, and who makes its hyperparameters, knows.
class RuleValue {
 public:
  static constexpr size_t kBytesMax = 64;

  RuleValue() = default;
  template <typename T>
  static RuleValue Of(const T& value) {
    static_assert(std::is_trivially_copyable_v<T> && sizeof(T) <= kBytesMax);
    RuleValue made;
    made.type_ = TypeOf<T>();
    std::memcpy(made.bytes_, &value, sizeof(T));
    return made;
  }
  // Precondition: it was made of a T.
  template <typename T>
  T As() const {
    SLUICE_CHECK_MSG(type_ == TypeOf<T>(), "a value of another update rule");
    T value;
    std::memcpy(&value, bytes_, sizeof(T));
    return value;
  }

 private:
  template <typename T>
  static const void* TypeOf() {
    static const char type = 0;  // its address is the type's name
    return &type;
  }

  const void* type_ = nullptr;
  std::byte bytes_[kBytesMax] = {};
};
using Hyperparameters = RuleValue;  // of a group of tensors
using StepScalars = RuleValue;      // of one tensor's update in one step

// The elements of a chunk that one update is about, and what it reads and writes beside the states.
struct UpdateRun {
  int64_t at = 0;  // the first one, in the chunk
  size_t elements = 0;
  const void* grad = nullptr;  // `elements` values, aligned to their type; so is param_out
  FloatType grad_type = FloatType::kF32;
  void* param_out = nullptr;  // null: no copy is written; nor may it be one that is the master
  FloatType param_type = FloatType::kF32;
  // Where a kernel that adds sums adds those of the states that it finds and leaves, of whole
  // stripes (core/checksum.h); the rest at the end of the run is the caller's. Null: nowhere.
  StripeSums* before = nullptr;
  StripeSums* after = nullptr;
  size_t stripe = 0;          // of the run's first element in its piece
  size_t column_stripes = 0;  // of a piece, in one field
};

class UpdateRule;

// A rule's one pass over the states of a format. `stream`: see on_stream.h.
struct UpdateKernel {
  void (*run)(void* stream, const StepScalars& scalars, const StateFormat& format,
              const ChunkStates& chunk, const UpdateRun& run) = nullptr;  // null: there is none
  bool on_gpus = false;
  bool adds_sums = false;  // on the CPU, where the states have the whole master
};

class UpdateRule {
 public:
  UpdateRule() = default;
  virtual ~UpdateRule() = default;
  UpdateRule(const UpdateRule&) = delete;
  UpdateRule& operator=(const UpdateRule&) = delete;

  virtual const char* name() const = 0;  // for people; static
  // What it keeps of each parameter: the master first, at most kStateFieldsMax.
  virtual std::span<const StateField> fields() const = 0;
  // `step` counts the tensor's updates from 1; gradients are to be multiplied by `grad_scale`.
  virtual StepScalars Scalars(const Hyperparameters& hyper, int64_t step,
                              float grad_scale) const = 0;
  // Updates `n` elements in fp32: fields[i] are the values of fields()[i]. On the CPU.
  virtual void UpdateTile(const StepScalars& scalars, float* const* fields, const float* grad,
                          size_t n) const = 0;
  // None by default.
  virtual UpdateKernel KernelFor(const StateFormat& format) const;
};

class StateUpdate {
 public:
  // Precondition: the format was made for the rule's fields.
  StateUpdate(std::shared_ptr<const StateFormat> format, std::shared_ptr<const UpdateRule> rule);

  const StateFormat& format() const { return *format_; }
  const UpdateRule& rule() const { return *rule_; }

  // Whether states in the memory of a GPU can be updated there. Errors: Unimplemented, naming both
  // and saying what can be done.
  absl::Status CheckGpu() const;
  // Whether `field` is among the states. Errors: InvalidArgument, naming the rule and what it
  // keeps.
  absl::Status CheckKeeps(Field field) const;
  // Whether Run heeds UpdateRun's sums.
  bool adds_sums() const { return kernel_.run != nullptr && kernel_.adds_sums; }
  // Where `stream` is not null, CheckGpu is ok.
  void Run(void* stream, const StepScalars& scalars, const ChunkStates& chunk,
           const UpdateRun& run) const {
    if (kernel_.run != nullptr) return kernel_.run(stream, scalars, *format_, chunk, run);
    SLUICE_CHECK(stream == nullptr);
    RunInTiles(scalars, chunk, run);
  }

 private:
  void RunInTiles(const StepScalars& scalars, const ChunkStates& chunk, const UpdateRun& run) const;

  std::shared_ptr<const StateFormat> format_;
  std::shared_ptr<const UpdateRule> rule_;
  UpdateKernel kernel_;
};

}  // namespace sluice

#endif  // SLUICE_OPTIM_UPDATE_RULE_H_
