// comm/nccl_library.h
//
// NCCL as it is found when the program runs: a libnccl.so.2, opened once and never closed. Where
// nothing is said, the copy that the process has already is taken (PyTorch's), then the one in the
// Python packages that something in the process comes from, then what the system's loader finds.
//
// Threads: any, once it is opened. Allocates when it is opened, and what errors say.

#ifndef SLUICE_COMM_NCCL_LIBRARY_H_
#define SLUICE_COMM_NCCL_LIBRARY_H_

#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "comm/nccl_api.h"

namespace sluice {

struct NcclSearch {
  // If not empty, this file and no other; else that of the environment's SLUICE_NCCL_LIBRARY.
  std::string path;
  // Folders of Python packages, which have nvidia/nccl/lib/libnccl.so.2 if NCCL is among them.
  std::vector<std::string> packages;
};

// The folders of packages that the process has libraries from, in the order of loading.
std::vector<std::string> LoadedPackageFolders();

class NcclLibrary {
 public:
  // 2.18: from there on communicators that don't block are as they are now.
  static constexpr int kVersionMin = 21800;

  // Errors: NotFound saying each place that was looked at and what was wrong there;
  // FailedPrecondition if what was found is too old, or lacks a function, by name.
  static absl::StatusOr<std::shared_ptr<const NcclLibrary>> Open(const NcclSearch& search);

  const NcclApi& api() const { return api_; }
  int version() const { return version_; }                   // 22703
  std::string version_name() const;                          // "2.27.3"
  const std::string& path() const { return path_; }          // the file
  const std::string& found_as() const { return found_as_; }  // "loaded in this process"
  std::string description() const;  // "NCCL 2.27.3 (loaded in this process: /a/libnccl.so.2)"

  // Ok, or "<what>: <NCCL's words> (<its name>)" with what `comm`, which may be null, says more.
  // A lost peer is Unavailable, wrong arguments are Internal, as the rest.
  absl::Status ToStatus(NcclResult result, const char* what, NcclComm* comm) const;

 private:
  NcclLibrary() = default;

  // Finds the functions, asks for the version and checks it.
  absl::Status Bind(void* handle);

  NcclApi api_;
  int version_ = 0;
  std::string path_;
  std::string found_as_;
};

}  // namespace sluice

#endif  // SLUICE_COMM_NCCL_LIBRARY_H_
