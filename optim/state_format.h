// optim/state_format.h
//
// How the optimizer's states of a chunk lie in memory and on disk. What there is to keep is said by
// the update rule (update_rule.h): fields, the master first. How many bytes they take, and how a
// value of theirs is read and written as fp32, is said here and known nowhere else. The first one
// is MakeFp32States.
//
// A format may keep part of the master in the parameter's copy (of a bf16 copy, say, only the bits
// that rounding lost): then it reads the copy, whoever has the states needs the copy beside them,
// and Store keeps the two together. It is asked by the type of the copy, since what is worth
// keeping depends on it; by none where it is to keep the whole master: the parameter is with a
// caller who may change its type, or nothing else would read the copy. Beside an fp32 copy that
// it is asked by it need keep nothing of the master at all.
//
// Bytes that are all zero, of the states and of the copy, are fields that are all zero.
//
// Threads: any; a format is immutable, and its functions touch what they are given only. They
// allocate nothing.

#ifndef SLUICE_OPTIM_STATE_FORMAT_H_
#define SLUICE_OPTIM_STATE_FORMAT_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "core/grid.h"
#include "core/types.h"

namespace sluice {

// What a caller can name of a tensor, by the C ABI's numbers. The parameter's copy and the gradient
// are no states; a rule's own fields have numbers of their own.
enum class Field : uint8_t { kParam = 0, kMaster = 1, kExpAvg = 2, kExpAvgSq = 3, kGrad = 4 };

struct StateField {
  Field id;
  const char* name;  // static: as PyTorch's state_dict has it

  friend bool operator==(const StateField& a, const StateField& b) { return a.id == b.id; }
};
inline constexpr StateField kMasterField = {Field::kMaster, "master"};
inline constexpr size_t kMasterIndex = 0;  // the master's place among a rule's fields
inline constexpr size_t kStateFieldsMax = 4;

// The states of one chunk, and the copy of its parameters.
struct ChunkStates {
  std::byte* data = nullptr;  // StateFormat::bytes of it
  int64_t capacity = 0;       // elements that the chunk has room for
  // The copy of element 0, from which others lie as they do in the chunk; looked at only if the
  // format reads it, and then of the elements asked for.
  std::byte* param = nullptr;
  std::optional<FloatType> param_type;  // none: the states have the whole master
};

class StateFormat {
 public:
  // `fields`: of the rule, at most kStateFieldsMax, the master first.
  explicit StateFormat(std::span<const StateField> fields);
  virtual ~StateFormat() = default;
  StateFormat(const StateFormat&) = delete;
  StateFormat& operator=(const StateFormat&) = delete;

  std::span<const StateField> fields() const { return fields_; }
  // The place of a field among fields(); none: there is no such field.
  std::optional<size_t> Find(Field id) const;

  virtual std::string name() const = 0;  // for reports and errors
  // Of the states of a chunk with room for `capacity` elements.
  virtual Bytes bytes(int64_t capacity, std::optional<FloatType> param_type) const = 0;
  // How many arrays of equal size lie side by side in it; one if that isn't so.
  virtual uint32_t columns(std::optional<FloatType>) const { return 1; }
  virtual bool reads_param(std::optional<FloatType> param_type) const;

  // Where the chunk's values of a field lie, if they lie side by side as fp32: to be read and
  // written there. Null: only through Load and Store.
  virtual float* InPlace(const ChunkStates& chunk, size_t field) const;
  virtual bool all_in_place() const;  // never null
  // The values of `field`, a place among fields(), from element `at` of the chunk on. Storing a
  // master also sets the copy, if the format reads it.
  virtual void Load(const ChunkStates& chunk, size_t field, int64_t at,
                    std::span<float> values) const = 0;
  virtual void Store(const ChunkStates& chunk, size_t field, int64_t at,
                     std::span<const float> values) const = 0;

  // The same with `n` values of any type, converted as convert.h does.
  void Read(const ChunkStates& chunk, size_t field, int64_t at, void* values, FloatType type,
            size_t n) const;
  void Write(const ChunkStates& chunk, size_t field, int64_t at, const void* values, FloatType type,
             size_t n) const;
  // AdoptChanged of convert.h, of the master.
  void Adopt(const ChunkStates& chunk, int64_t at, const void* param, FloatType type,
             size_t n) const;

 private:
  const std::vector<StateField> fields_;
};

// What a format is made by, for the fields of the rule that updates it.
using StateFormatMaker = std::shared_ptr<const StateFormat> (*)(std::span<const StateField> fields);

// An array of fp32 for each field, side by side, each with room for the chunk's capacity; none for
// the master where it is asked by an fp32 copy, which is the master then.
std::shared_ptr<const StateFormat> MakeFp32States(std::span<const StateField> fields);

}  // namespace sluice

#endif  // SLUICE_OPTIM_STATE_FORMAT_H_
