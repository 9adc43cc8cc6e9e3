/* offload/sluice_checkpoint.h
 *
 * Checkpoints by the C ABI: a run is saved, and goes on elsewhere, on any number of ranks, with any
 * budgets, tiers and chunk sizes, to the same bits. What is in one: masters, optimizer states and
 * numbers of updates of all tensors, frozen values, the loss scale and its counters, and what the
 * caller attaches. Gradients are not: save between a step and the next backward. Format:
 * offload/checkpoint/manifest.h; values are safetensors files. A load forgets what gradients there
 * are. Of lent tensors the parameter is the caller's to restore: it is the master that was loaded,
 * or, of SLUICE_KEEP_MOMENTS, what the caller has attached. Shapes are the caller's to compare.
 *
 * Threads, tickets, errors, struct_size: as sluice.h. Among several ranks all save and load, in the
 * same order as they step. */

#ifndef SLUICE_OFFLOAD_SLUICE_CHECKPOINT_H_
#define SLUICE_OFFLOAD_SLUICE_CHECKPOINT_H_

#include "sluice.h" /* beside this file, here and where it is installed */

#ifdef __cplusplus
extern "C" {
#endif

typedef struct sluice_attachment {
  const char* name; /* "client.json": a file's name */
  const void* data;
  uint64_t bytes;
} sluice_attachment;

typedef struct sluice_save_args {
  size_t struct_size;
  const char* directory; /* made if it isn't there; seen by all ranks */
  const char* tag;       /* the checkpoint is directory/tag; it replaces one of that name */
  uint64_t id;           /* not 0; the same on all ranks, another for every save */
  const sluice_attachment* attachments; /* this rank's; copied */
  uint64_t attachment_count;
  int32_t latest;         /* 1: directory/latest names it then */
  int32_t without_frozen; /* 1: frozen tensors are left out */
} sluice_save_args;

#define SLUICE_SAVE_INIT \
  { sizeof(sluice_save_args), 0, 0, 0, 0, 0, 1, 0 }

/* Saves what all steps before have made of the model; calls made after it wait for it. When the
 * ticket is done the checkpoint is durable, on all ranks; if it fails, what was there before is
 * still there, and training may go on. */
SLUICE_API sluice_status sluice_save(sluice_runtime runtime, const sluice_save_args* args,
                                     sluice_ticket* ticket);

#define SLUICE_LOAD_WITHOUT_STATES 1u /* masters and frozen values only: moments become 0 */
#define SLUICE_LOAD_SOME 2u           /* tensors that it lacks stay as they are */

typedef struct sluice_load_args {
  size_t struct_size;
  const char* directory;
  const char* tag; /* NULL: what directory/latest names, or the newest that is whole */
  uint32_t flags;
  uint32_t reserved; /* 0 */
} sluice_load_args;

#define SLUICE_LOAD_INIT \
  { sizeof(sluice_load_args), 0, 0, 0, 0 }

/* Loads tensors by their names, each verified before it is used. Errors of the ticket: NOT_FOUND;
 * INVALID_ARGUMENT naming a tensor that differs or is missing: nothing was changed then; DATA_LOSS
 * naming the file: the runtime has failed then, as after a failed update, since part of it is
 * changed. */
SLUICE_API sluice_status sluice_load(sluice_runtime runtime, const sluice_load_args* args,
                                     sluice_ticket* ticket);

/* What there is in `directory` (tag: NULL), or in one checkpoint ("": the one that sluice_load
 * would choose), as JSON, with the keys of `sluice ckpt list` and `show`. Needs no runtime; reads
 * manifests only. */
SLUICE_API sluice_status sluice_checkpoint_describe(const char* directory, const char* tag,
                                                    char* json, size_t capacity, size_t* needed);
/* What a rank attached, verified. At most `capacity` bytes are written; *needed is what it has. */
SLUICE_API sluice_status sluice_checkpoint_attachment(const char* directory, const char* tag,
                                                      uint32_t rank, const char* name, void* data,
                                                      size_t capacity, size_t* needed);
/* Removes whole checkpoints but the last `keep`, and those whose number of steps `every` (0: none)
 * divides; and what saves that died have left, so no other may be under way in `directory`. Nothing
 * else. */
SLUICE_API sluice_status sluice_checkpoint_prune(const char* directory, uint32_t keep,
                                                 uint64_t every);

#ifdef __cplusplus
} /* extern "C" */
#endif

#endif /* SLUICE_OFFLOAD_SLUICE_CHECKPOINT_H_ */
