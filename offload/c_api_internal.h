// offload/c_api_internal.h
//
// What the functions of the C ABI share, also those of the test library that creates runtimes over
// simulated seams: tables of handles, checks of arguments, and the way from a status to a code.
//
// Threads: any. Nothing here is destroyed before the process ends.

#ifndef SLUICE_OFFLOAD_C_API_INTERNAL_H_
#define SLUICE_OFFLOAD_C_API_INTERNAL_H_

#include <sys/types.h>
#include <unistd.h>

#include <cstdint>
#include <exception>
#include <map>
#include <memory>
#include <mutex>
#include <new>
#include <string>
#include <utility>

#include "absl/status/statusor.h"
#include "core/status.h"
#include "fmt/format.h"
#include "offload/factory.h"
#include "offload/sluice.h"

namespace sluice::c_api {

// Remembers the words of an error for sluice_last_error, and translates the code.
sluice_status Return(const absl::Status& status);
const std::string& LastError();  // of this thread

// The body of every function: a third party's exception, or memory that ran out, becomes a status.
template <typename Body>
sluice_status Guarded(Body body) {
  try {
    return Return(body());
  } catch (const std::bad_alloc&) {
    return Return(absl::ResourceExhaustedError("out of memory"));
  } catch (const std::exception& e) {
    return Return(absl::InternalError(e.what()));
  }
}

// Handles of one kind. An entry lives until the last call that uses it has returned.
template <typename T>
class Handles {
 public:
  uint64_t Add(std::shared_ptr<T> object) {
    const std::lock_guard lock(mutex_);
    const uint64_t handle = next_++;
    objects_[handle] = {std::move(object), getpid()};
    return handle;
  }
  absl::StatusOr<std::shared_ptr<T>> Get(uint64_t handle, const char* kind) {
    const std::lock_guard lock(mutex_);
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
  absl::StatusOr<std::shared_ptr<T>> Remove(uint64_t handle, const char* kind) {
    SLUICE_ASSIGN_OR_RETURN(std::shared_ptr<T> object, Get(handle, kind));
    const std::lock_guard lock(mutex_);
    objects_.erase(handle);
    return object;
  }
  std::mutex* mutex() { return &mutex_; }

 private:
  struct Entry {
    std::shared_ptr<T> object;
    pid_t pid = 0;
  };
  std::mutex mutex_;
  uint64_t next_ = 0x51;  // handles of either kind differ from small numbers, and are never reused
  std::map<uint64_t, Entry> objects_;
};

// Never destroyed: a child of fork, or a thread that outlives main, must find them.
Handles<ModelSpec>& Models();
Handles<Runtime>& Runtimes();
sluice_runtime AddRuntime(std::unique_ptr<Runtime> runtime);

// Errors of all that follow: InvalidArgument naming the argument, its value and what it may be.
absl::Status NotNull(const void* pointer, const char* name);
absl::Status CheckUnit(const Runtime& runtime, uint32_t unit);
absl::Status CheckTensor(const Runtime& runtime, uint32_t tensor);
absl::Status CheckElements(const Runtime& runtime, uint32_t tensor, int64_t elements);
absl::Status CheckRange(int64_t value, int64_t low, int64_t high, const char* name);
absl::StatusOr<FloatType> ToFloatType(int32_t dtype, const char* name);

// Any struct of a caller: at least as long as this version's, so nothing is read that isn't there.
template <typename T>
absl::Status CheckStruct(const T* value, const char* name) {
  SLUICE_RETURN_IF_ERROR(NotNull(value, name));
  if (value->struct_size >= sizeof(T) && value->struct_size < 4096) return absl::OkStatus();
  return absl::InvalidArgumentError(fmt::format("{}.struct_size is {}; set it to sizeof (here {})",
                                                name, value->struct_size, sizeof(T)));
}

absl::StatusOr<RuntimeConfig> ToConfig(const sluice_options* options);
absl::StatusOr<StepRequest> ToStepRequest(const sluice_step_args* args, const Runtime& runtime);

// As much of `text` as fits, always terminated; *needed (may be null) is what the whole takes.
absl::Status WriteText(const std::string& text, char* out, size_t capacity, size_t* needed);

}  // namespace sluice::c_api

#endif  // SLUICE_OFFLOAD_C_API_INTERNAL_H_
