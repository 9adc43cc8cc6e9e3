// comm/nccl_api.h
//
// What Sluice uses of NCCL, declared here: no header of NCCL's is needed to build, and no copy of
// one is kept. scripts/check-nccl compares these declarations with a real header, name by name.
// The library is found when the program runs (nccl_library.h).

#ifndef SLUICE_COMM_NCCL_API_H_
#define SLUICE_COMM_NCCL_API_H_

#include <climits>
#include <cstddef>

namespace sluice {

// Incomplete: NCCL's ncclComm. A stream is a cudaStream_t.
struct NcclComm;

struct NcclUniqueId {
  char internal[128];
};

enum NcclResult : unsigned {
  kNcclSuccess = 0,
  kNcclUnhandledCudaError = 1,
  kNcclSystemError = 2,
  kNcclInternalError = 3,
  kNcclInvalidArgument = 4,
  kNcclInvalidUsage = 5,
  kNcclRemoteError = 6,
  kNcclInProgress = 7,
};

enum NcclType : unsigned { kNcclUint8 = 1, kNcclFloat16 = 6, kNcclFloat32 = 7, kNcclBfloat16 = 9 };
enum NcclRedOp : unsigned { kNcclSum = 0 };

// As it was in 2.17. A newer library takes the size from it, and its own defaults for what it has
// more.
struct NcclConfig {
  size_t size = sizeof(NcclConfig);
  unsigned magic = 0xcafebeef;
  unsigned version = 21700;
  int blocking = INT_MIN;  // as the rest: the library decides
  int cga_cluster_size = INT_MIN;
  int min_ctas = INT_MIN;
  int max_ctas = INT_MIN;
  const char* net_name = nullptr;
};

// A function of each name with `nccl` before it.
#define SLUICE_NCCL_FUNCTIONS(F)                                                                 \
  F(GetVersion, NcclResult, (int* version))                                                      \
  F(GetErrorString, const char*, (NcclResult result))                                            \
  F(GetLastError, const char*, (NcclComm * comm))                                                \
  F(GetUniqueId, NcclResult, (NcclUniqueId * id))                                                \
  F(CommInitRankConfig, NcclResult,                                                              \
    (NcclComm * *comm, int ranks, NcclUniqueId id, int rank, NcclConfig* config))                \
  F(CommGetAsyncError, NcclResult, (NcclComm * comm, NcclResult * error))                        \
  F(CommFinalize, NcclResult, (NcclComm * comm))                                                 \
  F(CommDestroy, NcclResult, (NcclComm * comm))                                                  \
  F(CommAbort, NcclResult, (NcclComm * comm))                                                    \
  F(GroupStart, NcclResult, ())                                                                  \
  F(GroupEnd, NcclResult, ())                                                                    \
  F(AllGather, NcclResult,                                                                       \
    (const void* send, void* receive, size_t count_each, NcclType type, NcclComm* comm,          \
     void* stream))                                                                              \
  F(ReduceScatter, NcclResult,                                                                   \
    (const void* send, void* receive, size_t count_each, NcclType type, NcclRedOp op,            \
     NcclComm* comm, void* stream))                                                              \
  F(AllReduce, NcclResult,                                                                       \
    (const void* send, void* receive, size_t count, NcclType type, NcclRedOp op, NcclComm* comm, \
     void* stream))                                                                              \
  F(Reduce, NcclResult,                                                                          \
    (const void* send, void* receive, size_t count, NcclType type, NcclRedOp op, int root,       \
     NcclComm* comm, void* stream))                                                              \
  F(Broadcast, NcclResult,                                                                       \
    (const void* send, void* receive, size_t count, NcclType type, int root, NcclComm* comm,     \
     void* stream))                                                                              \
  F(Send, NcclResult,                                                                            \
    (const void* send, size_t count, NcclType type, int peer, NcclComm* comm, void* stream))     \
  F(Recv, NcclResult,                                                                            \
    (void* receive, size_t count, NcclType type, int peer, NcclComm* comm, void* stream))

struct NcclApi {
#define SLUICE_NCCL_POINTER(name, result, arguments) result(*name) arguments = nullptr;
  SLUICE_NCCL_FUNCTIONS(SLUICE_NCCL_POINTER)
#undef SLUICE_NCCL_POINTER
};

}  // namespace sluice

#endif  // SLUICE_COMM_NCCL_API_H_
