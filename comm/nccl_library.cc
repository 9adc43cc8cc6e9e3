#include "comm/nccl_library.h"

#include <dlfcn.h>
#include <link.h>

#include <algorithm>
#include <optional>
#include <string_view>

#include "core/config.h"
#include "core/status.h"
#include "fmt/format.h"

namespace sluice {

namespace {

constexpr const char* kFile = "libnccl.so.2";
constexpr const char* kInPackages = "nvidia/nccl/lib/libnccl.so.2";
constexpr const char* kVariable = "SLUICE_NCCL_LIBRARY";

const char* ResultName(NcclResult result) {
  static constexpr const char* kNames[] = {
      "ncclSuccess",         "ncclUnhandledCudaError", "ncclSystemError", "ncclInternalError",
      "ncclInvalidArgument", "ncclInvalidUsage",       "ncclRemoteError", "ncclInProgress"};
  return result < std::size(kNames) ? kNames[result] : "a result of a newer version";
}

// The file that has a function of the library's.
std::string FileOf(void* function, std::string_view otherwise) {
  Dl_info info{};
  const bool known = dladdr(function, &info) != 0 && info.dli_fname != nullptr;
  return std::string(known ? info.dli_fname : otherwise);
}

struct Place {
  std::string file;
  std::string found_as;
  int flags = 0;  // of dlopen, beside RTLD_NOW and RTLD_LOCAL
};

// What is said by name is all there is; else everywhere, in order.
std::vector<Place> PlacesOf(const NcclSearch& search) {
  if (!search.path.empty()) return {{search.path, "as given"}};
  if (const std::optional<std::string> path = GetEnv(kVariable))
    return {{*path, fmt::format("as {} says", kVariable)}};
  std::vector<Place> places = {{kFile, "loaded in this process", RTLD_NOLOAD}};
  for (const std::string& folder : search.packages)
    places.push_back({fmt::format("{}/{}", folder, kInPackages), "in Python's packages"});
  places.push_back({kFile, "found by the system's loader"});
  return places;
}

}  // namespace

std::vector<std::string> LoadedPackageFolders() {
  std::vector<std::string> folders;
  dl_iterate_phdr(
      [](dl_phdr_info* info, size_t, void* to) {
        const std::string_view path = info->dlpi_name;
        auto* const found = static_cast<std::vector<std::string>*>(to);
        for (const std::string_view packages : {"/site-packages/", "/dist-packages/"}) {
          const size_t at = path.rfind(packages);
          if (at == std::string_view::npos) continue;
          std::string folder(path.substr(0, at + packages.size() - 1));
          if (std::ranges::find(*found, folder) == found->end())
            found->push_back(std::move(folder));
        }
        return 0;
      },
      &folders);
  return folders;
}

absl::StatusOr<std::shared_ptr<const NcclLibrary>> NcclLibrary::Open(const NcclSearch& search) {
  std::string tried;
  for (const Place& place : PlacesOf(search)) {
    void* const handle = dlopen(place.file.c_str(), RTLD_NOW | RTLD_LOCAL | place.flags);
    if (handle == nullptr) {
      const char* const error = dlerror();
      const bool absent = (place.flags & RTLD_NOLOAD) != 0;
      tried += fmt::format("; {} {}: {}", place.file, place.found_as,
                           absent || error == nullptr ? "it is not" : error);
      continue;
    }
    const std::shared_ptr<NcclLibrary> library(new NcclLibrary);
    library->path_ = place.file;
    library->found_as_ = place.found_as;
    SLUICE_RETURN_IF_ERROR(library->Bind(handle));
    return library;
  }
  return absl::NotFoundError(
      fmt::format("NCCL can't be opened{}. Install the package nvidia-nccl of your CUDA's version, "
                  "or name the file in {}",
                  tried, kVariable));
}

absl::Status NcclLibrary::Bind(void* handle) {
  const auto find = [&](const char* name, auto** function) {
    *function = reinterpret_cast<std::remove_pointer_t<decltype(function)>>(dlsym(handle, name));
    return *function == nullptr ? absl::FailedPreconditionError(
                                      fmt::format("{} ({}): it has no {}", path_, found_as_, name))
                                : absl::OkStatus();
  };
  // The version first: it says more than what an old one lacks.
  SLUICE_RETURN_IF_ERROR(find("ncclGetVersion", &api_.GetVersion));
  path_ = FileOf(reinterpret_cast<void*>(api_.GetVersion), path_);
  const NcclResult result = api_.GetVersion(&version_);
  if (result != kNcclSuccess)
    return absl::InternalError(
        fmt::format("{}: ncclGetVersion says {}", path_, ResultName(result)));
  if (version_ < kVersionMin) {
    return absl::FailedPreconditionError(fmt::format(
        "{} ({}) is NCCL {}, and Sluice needs 2.18 or newer", path_, found_as_, version_name()));
  }
#define SLUICE_NCCL_FIND(name, result, arguments) \
  SLUICE_RETURN_IF_ERROR(find("nccl" #name, &api_.name));
  SLUICE_NCCL_FUNCTIONS(SLUICE_NCCL_FIND)
#undef SLUICE_NCCL_FIND
  return absl::OkStatus();
}

// Up to 2.8 it was 1000 for the minor one: such are too old, and only said.
std::string NcclLibrary::version_name() const {
  const int minor = version_ < 10000 ? 1000 : 10000;
  return fmt::format("{}.{}.{}", version_ / minor, version_ % minor / 100, version_ % 100);
}

std::string NcclLibrary::description() const {
  return fmt::format("NCCL {} ({}: {})", version_name(), found_as_, path_);
}

absl::Status NcclLibrary::ToStatus(NcclResult result, const char* what, NcclComm* comm) const {
  if (result == kNcclSuccess) return absl::OkStatus();
  const char* const words = api_.GetErrorString(result);
  const char* const more = api_.GetLastError(comm);
  std::string text =
      fmt::format("{}: {} ({})", what, words == nullptr ? "no words" : words, ResultName(result));
  if (more != nullptr && *more != '\0') text += fmt::format(": {}", more);
  const bool outside = result == kNcclRemoteError || result == kNcclSystemError;
  return outside ? absl::UnavailableError(text) : absl::InternalError(text);
}

}  // namespace sluice
