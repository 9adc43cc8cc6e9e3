// offload/abi/c_api_internal.h
//
// What the functions of the C ABI share, also those of the test library that creates runtimes over
// simulated seams: tables of handles, checks of arguments, and the way from a status to a code.
//
// Threads: any. Nothing here is destroyed before the process ends.

#ifndef SLUICE_OFFLOAD_ABI_C_API_INTERNAL_H_
#define SLUICE_OFFLOAD_ABI_C_API_INTERNAL_H_

#include <sys/types.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <exception>
#include <map>
#include <memory>
#include <mutex>
#include <new>
#include <string>
#include <string_view>
#include <utility>

#include "absl/status/statusor.h"
#include "core/status.h"
#include "fmt/format.h"
#include "offload/run/factory.h"
#include "offload/sluice.h"

namespace sluice::c_api {

// Remember the words of an error for sluice_last_error, and translate the code. Where there is no
// memory for the words, others say so.
sluice_status Return(const absl::Status& status) noexcept;
sluice_status ReturnOutOfMemory() noexcept;
sluice_status ReturnInternal(const char* words) noexcept;
const char* LastError();  // of this thread

// The body of every function: a third party's exception, or memory that ran out, becomes a status.
template <typename Body>
sluice_status Guarded(Body body) noexcept {
  try {
    return Return(body());
  } catch (const std::bad_alloc&) {
    return ReturnOutOfMemory();
  } catch (const std::exception& e) {
    return ReturnInternal(e.what());
  }
}

// Handles of one kind. An entry lives until the last call that uses it has returned.
template <typename T>
class Handles {
 public:
  // `kind` is the top byte of every handle, so that one of another kind is never taken for ours.
  explicit Handles(uint8_t kind) : next_((uint64_t{kind} << 56) + 1) {}

  uint64_t Add(std::shared_ptr<T> object) {
    const std::lock_guard lock(mutex_);
    const uint64_t handle = next_++;
    objects_[handle] = {std::move(object), getpid()};
    return handle;
  }
  absl::StatusOr<std::shared_ptr<T>> Get(uint64_t handle, const char* kind) {
    const std::lock_guard lock(mutex_);
    return Find(handle, kind);
  }
  absl::StatusOr<std::shared_ptr<T>> Remove(uint64_t handle, const char* kind) {
    const std::lock_guard lock(mutex_);
    SLUICE_ASSIGN_OR_RETURN(std::shared_ptr<T> object, Find(handle, kind));
    objects_.erase(handle);
    return object;
  }
  std::mutex* mutex() { return &mutex_; }

 private:
  struct Entry {
    std::shared_ptr<T> object;
    pid_t pid = 0;
  };
  absl::StatusOr<std::shared_ptr<T>> Find(uint64_t handle, const char* kind) const {
    const auto it = objects_.find(handle);
    if (it == objects_.end()) {
      return absl::InvalidArgumentError(
          fmt::format("{:#x} is not a {} handle, or it was destroyed", handle, kind));
    }
    if (it->second.pid != getpid()) {
      return absl::FailedPreconditionError(fmt::format(
          "this {} belongs to process {}; a forked child can't use it: create one of its own", kind,
          it->second.pid));
    }
    return it->second.object;
  }

  std::mutex mutex_;
  uint64_t next_;  // never reused
  std::map<uint64_t, Entry> objects_;
};

// A model being described, by any number of threads.
struct Model {
  std::mutex mutex;
  ModelSpec spec;  // guarded by mutex
};

// Never destroyed: a child of fork, or a thread that outlives main, must find them.
Handles<Model>& Models();
Handles<OffloadRuntime>& Runtimes();
absl::StatusOr<ModelSpec> SpecOf(sluice_model model);  // as described so far
sluice_runtime AddRuntime(std::unique_ptr<OffloadRuntime> runtime);

// How the last who has a runtime lets it go.
struct RuntimeCloser {
  void operator()(OffloadRuntime* runtime) const {
    absl::Status closed = OffloadRuntime::Close(std::unique_ptr<OffloadRuntime>(runtime));
    if (result != nullptr) *result = std::move(closed);
  }
  absl::Status* result = nullptr;
};

// Errors of all that follow: InvalidArgument naming the argument, its value and what it may be.
absl::Status NotNull(const void* pointer, const char* name);
absl::Status CheckExists(const char* what, uint32_t index, size_t count);
absl::Status CheckUnit(const OffloadRuntime& runtime, uint32_t unit);
absl::Status CheckTensor(const OffloadRuntime& runtime, uint32_t tensor);
absl::Status CheckElements(const OffloadRuntime& runtime, uint32_t tensor, int64_t elements);
absl::Status CheckRange(int64_t value, int64_t low, int64_t high, const char* name);
absl::Status CheckReal(double value, double low, double high, const char* name);
absl::StatusOr<FloatType> ToFloatType(int32_t dtype, std::string_view name);
// Of one unit, whose name is for messages.
absl::StatusOr<UnitTypes> ToUnitTypes(int32_t param_dtype, int32_t grad_dtype,
                                      const std::string& unit);
// The type of the elements that are passed to read or write `field` of a tensor.
absl::StatusOr<ElementType> ToElementType(const OffloadRuntime& runtime, uint32_t tensor,
                                          int32_t field, int32_t dtype);

// Structs of callers may be of an older version, which ends earlier, or of a newer one. Their sizes
// are multiples of 8, so that none ends inside a field.
template <typename T>
absl::Status CheckStruct(const T* value, const char* name) {
  SLUICE_RETURN_IF_ERROR(NotNull(value, name));
  constexpr size_t kShortest = 16;
  constexpr size_t kLongest = 4096;
  const size_t size = value->struct_size;
  if (size >= kShortest && size < kLongest && size % alignof(T) == 0) return absl::OkStatus();
  return absl::InvalidArgumentError(
      fmt::format("{}.struct_size is {}; set it to sizeof (here {})", name, size, sizeof(T)));
}

// What a caller's struct says, and `defaults` where its version ends before this one's.
template <typename T>
absl::StatusOr<T> ReadStruct(const T* value, const T& defaults, const char* name) {
  SLUICE_RETURN_IF_ERROR(CheckStruct(value, name));
  T known = defaults;
  std::memcpy(static_cast<void*>(&known), static_cast<const void*>(value),
              std::min(value->struct_size, sizeof(T)));
  return known;
}

// Fills in a caller's struct, which CheckStruct has passed, as far as its version goes.
template <typename T>
void WriteStruct(T result, T* value) {
  result.struct_size = value->struct_size;
  std::memcpy(static_cast<void*>(value), static_cast<const void*>(&result),
              std::min(value->struct_size, sizeof(T)));
}

inline constexpr uint32_t kGroupsMax = 1 << 20;  // of hyperparameters

absl::StatusOr<RuntimeConfig> ToConfig(const sluice_options* options);
// What of the options says where files are, and how transfers to them are made.
absl::Status ToIo(const sluice_options& options, RuntimeConfig* config);
// What of the options says which rank this is; and the communicators over its tables, which are
// none where there is one rank.
absl::Status ToSharding(const sluice_options& options, RuntimeConfig* config);
absl::StatusOr<RankLinks> ToRankLinks(const sluice_options* options);
// Fills in an empty request, whose memory is used.
absl::Status ReadStep(const sluice_step_args* args, const OffloadRuntime& runtime,
                      StepRequest* request);

// As much of `text` as fits, always terminated; *needed (may be null) is what the whole takes.
absl::Status WriteText(const std::string& text, char* out, size_t capacity, size_t* needed);

}  // namespace sluice::c_api

#endif  // SLUICE_OFFLOAD_ABI_C_API_INTERNAL_H_
