#include "core/openmp_runtimes.h"

#include <dlfcn.h>
#include <link.h>

#include <algorithm>
#include <set>
#include <string_view>

namespace sluice {

std::vector<std::string> LoadedOpenMp() {
  std::vector<std::string> paths;
  dl_iterate_phdr(
      [](dl_phdr_info* info, size_t, void* found) {
        const std::string_view path(info->dlpi_name);
        const std::string_view name = path.substr(path.rfind('/') + 1);
        for (const std::string_view kind : {"libgomp", "libomp", "libiomp5"}) {
          if (name.starts_with(kind))
            static_cast<std::vector<std::string>*>(found)->emplace_back(path);
        }
        return 0;
      },
      &paths);
  return paths;
}

uint64_t LibrariesLoaded() {
  uint64_t loads = 0;
  dl_iterate_phdr(
      [](dl_phdr_info* info, size_t, void* found) {
        *static_cast<uint64_t*>(found) = info->dlpi_adds;
        return 1;  // of all; the same for each
      },
      &loads);
  return loads;
}

std::vector<int> OpenMpPlaces() {
  std::set<int> cores;
  for (const std::string& path : LoadedOpenMp()) {
    void* const library = dlopen(path.c_str(), RTLD_LAZY | RTLD_NOLOAD | RTLD_NODELETE);
    if (library == nullptr) continue;
    const auto count = reinterpret_cast<int (*)()>(dlsym(library, "omp_get_num_places"));
    const auto size = reinterpret_cast<int (*)(int)>(dlsym(library, "omp_get_place_num_procs"));
    const auto fill =
        reinterpret_cast<void (*)(int, int*)>(dlsym(library, "omp_get_place_proc_ids"));
    const int places = count != nullptr && size != nullptr && fill != nullptr ? count() : 0;
    for (int place = 0; place < places; ++place) {
      std::vector<int> ids(static_cast<size_t>(std::max(0, size(place))));
      if (!ids.empty()) fill(place, ids.data());
      cores.insert(ids.begin(), ids.end());
    }
    dlclose(library);
  }
  return {cores.begin(), cores.end()};
}

}  // namespace sluice
