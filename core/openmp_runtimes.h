// core/openmp_runtimes.h
//
// The OpenMP runtimes that are loaded in this process. None of them is linked: which there are is
// the host program's affair, and what they can be asked is looked up by name.
//
// Threads: any.

#ifndef SLUICE_CORE_OPENMP_RUNTIMES_H_
#define SLUICE_CORE_OPENMP_RUNTIMES_H_

#include <cstdint>
#include <string>
#include <vector>

namespace sluice {

// The paths of GNU's, LLVM's and Intel's.
std::vector<std::string> LoadedOpenMp();

// How many libraries were loaded in all: another number, and there may be another runtime.
uint64_t LibrariesLoaded();

// The hardware threads of the places that they bind their threads to, ascending; empty unless they
// bind them (OMP_PROC_BIND, OMP_PLACES). Such a runtime binds the program's first thread too, and
// whatever that starts inherits one place; all of them are what the process was given.
std::vector<int> OpenMpPlaces();

}  // namespace sluice

#endif  // SLUICE_CORE_OPENMP_RUNTIMES_H_
