/* comm/comm_table.h, installed as sluice/sluice_comm.h
 *
 * Ranks' communication as an embedding framework supplies it: a table of C functions over MPI, a
 * process group, or whatever it has. One table is one group, as one rank sees it.
 *
 * Threads: start is called from one thread of Sluice's, wait from another one, each for one
 * operation after the other in the order in which all ranks call them, and both at the same time;
 * abort from any thread, also while wait waits.
 * Memory: a call and its arrays are valid during start only; the memory that its buffers point at
 * until wait has said that the operation has ended or failed, and nothing of it may be touched
 * afterwards. If wait goes on saying neither for three seconds after abort, the operation is given
 * up: its memory then stays as it is for ever. No exception may leave a function. */

#ifndef SLUICE_COMM_COMM_TABLE_H_
#define SLUICE_COMM_COMM_TABLE_H_

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* What each rank passes, and gets: something of its own, or something for each rank. */
typedef enum sluice_comm_kind {
  SLUICE_COMM_ALL_GATHER = 0,     /* sends one; receives one for each */
  SLUICE_COMM_REDUCE_SCATTER = 1, /* sends one for each; receives the sum of those for it */
  SLUICE_COMM_ALL_REDUCE = 2,     /* sends one; receives the sum, as large */
  SLUICE_COMM_BROADCAST = 3,      /* `peer` sends one; the others receive one */
  SLUICE_COMM_ALL_TO_ALL = 4,     /* sends one for each; receives one from each */
  SLUICE_COMM_SEND = 5,           /* sends one to `peer`; ends when it is received */
  SLUICE_COMM_RECEIVE = 6,        /* receives one from `peer` */
  SLUICE_COMM_BARRIER = 7         /* neither */
} sluice_comm_kind;

typedef struct sluice_comm_buffer {
  void* data; /* of those that are sent, to be read only */
  size_t bytes;
} sluice_comm_buffer;

/* What is sent, or received: buffers one after the other. Where there is something for each rank,
 * `ends` has an entry for each, which says where in `buffers` those of the rank end, and those of
 * the next begin; else it is null, and all buffers are the one. */
typedef struct sluice_comm_segments {
  const sluice_comm_buffer* buffers;
  size_t count;
  const uint32_t* ends;
} sluice_comm_segments;

/* Buffers may be empty and of different sizes: what one rank sends to another is in all as large as
 * what that one receives from it, but may be cut in other places. What a rank receives from itself
 * may be the very memory that it sends. */
typedef struct sluice_comm_call {
  size_t struct_size;
  uint64_t tag;  /* the same on all ranks of the operation */
  int32_t kind;  /* sluice_comm_kind */
  int32_t dtype; /* what is added: 0 fp32, 1 bf16, 2 fp16; buffers are cut between values */
  uint32_t peer;
  uint32_t reserved;
  sluice_comm_segments send;
  sluice_comm_segments receive;
} sluice_comm_call;

typedef enum sluice_comm_result {
  SLUICE_COMM_ENDED = 0,
  SLUICE_COMM_PENDING = 1, /* wait only: call again */
  SLUICE_COMM_FAILED = 2,  /* `error` says why; the group is of no use any more */
  /* start only: as FAILED, but nothing went wrong: no rank's table does such a thing, ever */
  SLUICE_COMM_UNSUPPORTED = 3
} sluice_comm_result;

typedef struct sluice_comm_table {
  size_t struct_size;
  void* context; /* passed to each function */
  uint32_t rank;
  uint32_t ranks;
  /* Begins an operation, which `wait` ends, by its number: 0, 1, 2, ... ENDED, or FAILED or
   * UNSUPPORTED, and then there is nothing to wait for. Several may be under way: as many as the
   * communicator's options say, two if they say nothing. It may block only as long as the ranks
   * need to agree on nothing. `error` is a buffer for a message, which ends with a 0. */
  int32_t (*start)(void* context, const sluice_comm_call* call, uint64_t operation, char* error,
                   size_t error_bytes);
  /* Waits for an operation that was started, for at most `timeout_ms`. Of one that is pending
   * `error` may say what it waits for, "rank 3": words for the message when that takes too long.
   * Once it was aborted, FAILED with words counts more than what abort was told; without words it
   * adds nothing. */
  int32_t (*wait)(void* context, uint64_t operation, int32_t timeout_ms, char* error,
                  size_t error_bytes);
  /* Makes what is under way, and every later operation, fail within a second on this rank, and on
   * the others if it can, whose words then are `why`: a text that names the rank which is the
   * cause. It is valid during the call. Only the first call's counts. */
  void (*abort)(void* context, const char* why);
  /* The last call. Nothing is under way, unless it was aborted and did not end. May be null. */
  void (*close)(void* context);
  const char* description; /* for reports; it outlives the table's use */
} sluice_comm_table;

/* ---- Ranks that are processes of one host: tables of the library's own
 *
 * Each rank listens; the caller lets every rank have all addresses, by whatever it has; each rank
 * connects, and has a table for each group. Where that fails on any rank, all use tables of the
 * caller's: so all ask each other whether it did, and close what they have if so.
 *
 * Both return a sluice_status, whose words sluice_last_error has. */

#define SLUICE_LOCAL_ADDRESS_BYTES 128

/* `address` has room for so many. `listener` is to be connected, or forgotten. */
__attribute__((visibility("default"))) int32_t sluice_local_listen(uint32_t rank, uint32_t ranks,
                                                                   char* address,
                                                                   uint64_t* listener);
/* Waits until all ranks have called it, for at most `timeout_ms`. `addresses`: of all ranks, in
 * order. `tables` has room for `groups`, of the struct_size that the first one has.
 * FAILED_PRECONDITION: the ranks are not of one host. The listener is gone, whatever is returned.
 */
__attribute__((visibility("default"))) int32_t sluice_local_connect(uint64_t listener,
                                                                    const char* addresses,
                                                                    uint32_t groups,
                                                                    int32_t timeout_ms,
                                                                    sluice_comm_table* tables);
__attribute__((visibility("default"))) int32_t sluice_local_forget(uint64_t listener);

#ifdef __cplusplus
} /* extern "C" */
#endif

#endif /* SLUICE_COMM_COMM_TABLE_H_ */
