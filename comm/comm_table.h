/* comm/comm_table.h
 *
 * Ranks' communication as an embedding framework supplies it: a table of C functions over MPI, a
 * process group, or whatever it has. One table is one group, as one rank sees it. C, as the C ABI
 * will have it.
 *
 * Threads: start and wait are called from one thread of Sluice's at a time, one operation after the
 * other in the order in which all ranks call them; abort from any thread, also while wait waits.
 * Memory: a call's arrays and what they point at are valid from start until wait has said that the
 * operation has ended or failed; nothing of it may be touched afterwards. No exception may leave a
 * function. */

#ifndef SLUICE_COMM_COMM_TABLE_H_
#define SLUICE_COMM_COMM_TABLE_H_

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* What each rank passes, and gets: one buffer, or one for each rank, in their order. */
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

/* Buffers may be empty and of different sizes: a sent one is as large as the one that receives it.
 * What a rank receives from itself may be the very buffer that it sends. */
typedef struct sluice_comm_buffer {
  void* data; /* of those that are sent, to be read only */
  size_t bytes;
} sluice_comm_buffer;

typedef struct sluice_comm_call {
  size_t struct_size;
  int32_t kind;  /* sluice_comm_kind */
  int32_t dtype; /* what is added: 0 fp32, 1 bf16, 2 fp16 */
  uint32_t peer;
  uint32_t reserved;
  const sluice_comm_buffer* send;
  size_t send_count;
  const sluice_comm_buffer* receive;
  size_t receive_count;
} sluice_comm_call;

typedef enum sluice_comm_result {
  SLUICE_COMM_ENDED = 0,
  SLUICE_COMM_PENDING = 1, /* wait only: call again */
  SLUICE_COMM_FAILED = 2   /* `error` says why; the group is of no use any more */
} sluice_comm_result;

typedef struct sluice_comm_table {
  size_t struct_size;
  void* context; /* passed to each function */
  uint32_t rank;
  uint32_t ranks;
  /* Begins an operation, which `wait` ends: ENDED, or FAILED, and then there is nothing to wait
   * for. It may block only as long as the ranks need to agree on nothing. */
  int32_t (*start)(void* context, const sluice_comm_call* call, char* error, size_t error_bytes);
  /* Waits for the operation that was started, for at most `timeout_ms`. `error` is a buffer for a
   * message, which ends with a 0. */
  int32_t (*wait)(void* context, int32_t timeout_ms, char* error, size_t error_bytes);
  /* Makes the operation under way, and every later one, fail within a second on this rank, and on
   * the others if it can. It may be called more than once. */
  void (*abort)(void* context);
  /* The last call. Nothing is under way, unless it was aborted and did not end. May be null. */
  void (*close)(void* context);
  const char* description; /* for reports; it outlives the table's use */
} sluice_comm_table;

#ifdef __cplusplus
} /* extern "C" */
#endif

#endif /* SLUICE_COMM_COMM_TABLE_H_ */
