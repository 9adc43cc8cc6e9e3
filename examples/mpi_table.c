#define _POSIX_C_SOURCE 200809L

#include "mpi_table.h"

#include <mpi.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum {
  kUnderWay = 4,           /* operations of a table; Sluice has two, unless it is told otherwise */
  kTags = 1 << 14,         /* operations have tags in turn; MPI promises 32767 */
  kTagOfEnd = kTags,       /* of a rank's last words */
  kWords = 400,            /* of these */
  kBlockBytes = 1 << 30,   /* of a datatype at most: MPI counts in int */
  kPauseNs = 20 * 1000,    /* between two looks at an operation: at first, */
  kPauseNsMax = 500 * 1000 /* and later */
};

typedef struct Operation {
  MPI_Request* requests; /* to and from each rank; MPI_REQUEST_NULL: there is none */
  int cancelled;
} Operation;

typedef struct Table {
  MPI_Comm comm;
  int rank, ranks;
  Operation operations[kUnderWay]; /* by number, from the start again */
  MPI_Request* ends;               /* by rank: its last words */
  char (*words)[kWords];           /* by rank: these; the own ones are those that are sent */
  int aborted;
  int gone; /* a rank that has ended, or -1 */
} Table;

static pthread_mutex_t g_lock = PTHREAD_MUTEX_INITIALIZER;
static Table g_tables[kMpiTables];

void mpi_table_lock(int taken) {
  if (taken) {
    pthread_mutex_lock(&g_lock);
  } else {
    pthread_mutex_unlock(&g_lock);
  }
}

static void* Memory(size_t count, size_t size) {
  void* memory = calloc(count, size);
  if (memory != NULL) return memory;
  fprintf(stderr, "mpi_table: out of memory\n");
  exit(1);
}

static int32_t Say(char* error, size_t room, const char* words) {
  snprintf(error, room, "%s", words);
  return SLUICE_COMM_FAILED;
}

/* The buffers of a rank among these; all of them where there is one for all. */
static sluice_comm_segments PartOf(const sluice_comm_segments* all, int rank) {
  sluice_comm_segments part = *all;
  if (all->ends == NULL) return part;
  const size_t begin = rank == 0 ? 0 : all->ends[rank - 1];
  part.buffers = all->buffers + begin;
  part.count = all->ends[rank] - begin;
  part.ends = NULL;
  return part;
}

static size_t BytesOf(const sluice_comm_segments* part) {
  size_t bytes = 0;
  for (size_t i = 0; i < part->count; ++i) bytes += part->buffers[i].bytes;
  return bytes;
}

/* All of its bytes as one datatype, relative to MPI_BOTTOM. */
static MPI_Datatype TypeOf(const sluice_comm_segments* part) {
  size_t blocks = 0, at = 0;
  for (size_t i = 0; i < part->count; ++i) blocks += part->buffers[i].bytes / kBlockBytes + 1;
  int* lengths = Memory(blocks, sizeof(int));
  MPI_Aint* places = Memory(blocks, sizeof(MPI_Aint));
  for (size_t i = 0; i < part->count; ++i) {
    char* data = part->buffers[i].data;
    for (size_t left = part->buffers[i].bytes; left > 0;) {
      const size_t bytes = left < kBlockBytes ? left : kBlockBytes;
      lengths[at] = (int)bytes;
      MPI_Get_address(data, &places[at++]);
      data += bytes;
      left -= bytes;
    }
  }
  MPI_Datatype type;
  MPI_Type_create_hindexed((int)at, lengths, places, MPI_BYTE, &type);
  MPI_Type_commit(&type);
  free(lengths);
  free(places);
  return type;
}

/* What a rank sends to itself. It may be in place already, and is cut in any way. */
static void CopyOwn(const sluice_comm_segments* from, const sluice_comm_segments* to) {
  size_t i = 0, used = 0;
  for (size_t k = 0; k < to->count; ++k) {
    char* data = to->buffers[k].data;
    for (size_t left = to->buffers[k].bytes; left > 0;) {
      while (used == from->buffers[i].bytes) ++i, used = 0;
      const size_t rest = from->buffers[i].bytes - used;
      const size_t bytes = rest < left ? rest : left;
      const char* source = (const char*)from->buffers[i].data + used;
      if (source != data) memmove(data, source, bytes);
      used += bytes, data += bytes, left -= bytes;
    }
  }
}

/* With the lock held, all of these. */
static void Begin(Table* t, const sluice_comm_call* call, Operation* operation, int tag) {
  const int kind = call->kind, peer = (int)call->peer;
  const int point_to_point = kind == SLUICE_COMM_SEND || kind == SLUICE_COMM_RECEIVE;
  const int sends =
      kind != SLUICE_COMM_RECEIVE && (kind != SLUICE_COMM_BROADCAST || peer == t->rank);
  const int receives =
      kind != SLUICE_COMM_SEND && (kind != SLUICE_COMM_BROADCAST || peer != t->rank);
  /* Between two ranks only: the others don't count these, so they have a tag of their own. */
  if (point_to_point) tag = kTagOfEnd + 1;
  for (int r = 0; r < t->ranks; ++r) {
    const int from_r =
        receives && (r == peer || (!point_to_point && kind != SLUICE_COMM_BROADCAST));
    const int to_r = sends && (r == peer || !point_to_point);
    const sluice_comm_segments in = PartOf(&call->receive, r), out = PartOf(&call->send, r);
    if (r == t->rank) {
      if (from_r && to_r) CopyOwn(&out, &in);
      continue;
    }
    if (from_r && BytesOf(&in) > 0) {
      MPI_Datatype type = TypeOf(&in);
      MPI_Irecv(MPI_BOTTOM, 1, type, r, tag, t->comm, &operation->requests[2 * r]);
      MPI_Type_free(&type);
    }
    if (to_r && BytesOf(&out) > 0) {
      MPI_Datatype type = TypeOf(&out);
      /* One that is to end when it is received is a synchronous one. */
      (kind == SLUICE_COMM_SEND ? MPI_Issend : MPI_Isend)(MPI_BOTTOM, 1, type, r, tag, t->comm,
                                                          &operation->requests[2 * r + 1]);
      MPI_Type_free(&type);
    }
  }
}

static int32_t Start(void* context, const sluice_comm_call* call, uint64_t number, char* error,
                     size_t room) {
  Table* t = context;
  Operation* operation = &t->operations[number % kUnderWay];
  if (call->kind == SLUICE_COMM_REDUCE_SCATTER || call->kind == SLUICE_COMM_ALL_REDUCE) {
    Say(error, room, "not offered: Sluice adds up by itself");
    return SLUICE_COMM_UNSUPPORTED;
  }
  for (int i = 0; i < 2 * t->ranks; ++i) operation->requests[i] = MPI_REQUEST_NULL;
  operation->cancelled = 0;
  mpi_table_lock(1);
  if (call->kind == SLUICE_COMM_BARRIER) {
    MPI_Ibarrier(t->comm, &operation->requests[0]);
  } else {
    Begin(t, call, operation, (int)(number % kTags));
  }
  mpi_table_lock(0);
  return SLUICE_COMM_ENDED;
}

/* Whether the operation has ended; with what it waits for in `missing`: a rank, or -1. */
static int Test(Table* t, Operation* operation, int* missing) {
  int all = 1;
  *missing = -1;
  for (int i = 0; i < 2 * t->ranks; ++i) {
    int done = 1;
    if (operation->requests[i] != MPI_REQUEST_NULL)
      MPI_Test(&operation->requests[i], &done, MPI_STATUS_IGNORE);
    if (!done && *missing < 0) *missing = i / 2;
    all = all && done;
  }
  return all;
}

/* A rank that has ended, whose words then are there; or -1. */
static int LookForEnds(Table* t) {
  for (int r = 0; r < t->ranks && t->gone < 0; ++r) {
    int done = 0;
    if (t->ends[r] != MPI_REQUEST_NULL) MPI_Test(&t->ends[r], &done, MPI_STATUS_IGNORE);
    if (done) t->gone = r;
  }
  return t->gone;
}

static int32_t TestOnce(Table* t, Operation* operation, char* error, size_t room) {
  const int gone = LookForEnds(t);
  int missing;
  /* Looked at after that: what a rank had sent before its end has come by then. */
  const int ended = Test(t, operation, &missing);
  const int failed = operation->cancelled || t->aborted || gone >= 0;
  if (ended && !operation->cancelled) return SLUICE_COMM_ENDED;
  if (!ended && !failed) {
    snprintf(error, room, "rank %d", missing);
    return SLUICE_COMM_PENDING;
  }
  if (!operation->cancelled) {
    operation->cancelled = 1;
    for (int r = 0; r < t->ranks; ++r)
      if (operation->requests[2 * r] != MPI_REQUEST_NULL) MPI_Cancel(&operation->requests[2 * r]);
  }
  if (!ended) return SLUICE_COMM_PENDING;
  return Say(error, room, gone < 0 ? "" : t->words[gone]); /* where aborted, Sluice knows why */
}

static int32_t Wait(void* context, uint64_t number, int32_t timeout_ms, char* error, size_t room) {
  Table* t = context;
  struct timespec begin, now, pause = {0, kPauseNs};
  clock_gettime(CLOCK_MONOTONIC, &begin);
  while (1) {
    mpi_table_lock(1);
    const int32_t result = TestOnce(t, &t->operations[number % kUnderWay], error, room);
    mpi_table_lock(0);
    if (result != SLUICE_COMM_PENDING) return result;
    clock_gettime(CLOCK_MONOTONIC, &now);
    if ((now.tv_sec - begin.tv_sec) * 1000 + (now.tv_nsec - begin.tv_nsec) / 1000000 >= timeout_ms)
      return result;
    nanosleep(&pause, NULL);
    if (pause.tv_nsec < kPauseNsMax) pause.tv_nsec += pause.tv_nsec / 4;
  }
}

static void TellAll(Table* t, const char* why) {
  mpi_table_lock(1);
  if (!t->aborted) {
    t->aborted = 1;
    snprintf(t->words[t->rank], kWords, "rank %d: %s", t->rank, why);
    for (int r = 0; r < t->ranks; ++r) {
      MPI_Request sent;
      if (r == t->rank) continue;
      MPI_Isend(t->words[t->rank], kWords, MPI_CHAR, r, kTagOfEnd, t->comm, &sent);
      MPI_Request_free(&sent);
    }
  }
  mpi_table_lock(0);
}

static void Abort(void* context, const char* why) { TellAll(context, why); }

static void Close(void* context) { TellAll(context, "it has ended its training"); }

void mpi_tables_open(int* argc, char*** argv, sluice_comm_table tables[kMpiTables]) {
  int threads = MPI_THREAD_SINGLE;
  MPI_Init_thread(argc, argv, MPI_THREAD_SERIALIZED, &threads);
  if (threads < MPI_THREAD_SERIALIZED) {
    fprintf(stderr, "mpi_table: this MPI can't be called from several threads\n");
    MPI_Abort(MPI_COMM_WORLD, 1);
  }
  for (int i = 0; i < kMpiTables; ++i) {
    Table* t = &g_tables[i];
    MPI_Comm_dup(MPI_COMM_WORLD, &t->comm);
    MPI_Comm_rank(t->comm, &t->rank);
    MPI_Comm_size(t->comm, &t->ranks);
    for (int k = 0; k < kUnderWay; ++k)
      t->operations[k].requests = Memory(2 * (size_t)t->ranks, sizeof(MPI_Request));
    t->ends = Memory((size_t)t->ranks, sizeof(MPI_Request));
    t->words = Memory((size_t)t->ranks, kWords);
    t->gone = -1;
    for (int r = 0; r < t->ranks; ++r) {
      t->ends[r] = MPI_REQUEST_NULL;
      if (r != t->rank)
        MPI_Irecv(t->words[r], kWords, MPI_CHAR, r, kTagOfEnd, t->comm, &t->ends[r]);
    }
    const sluice_comm_table table = {
        sizeof(table), t, (uint32_t)t->rank, (uint32_t)t->ranks, Start, Wait, Abort, Close, "MPI"};
    tables[i] = table;
  }
}

/* Every rank has told every other that it ends: what was sent so is received before MPI ends. */
void mpi_tables_close(void) {
  for (int i = 0; i < kMpiTables; ++i) {
    Table* t = &g_tables[i];
    MPI_Waitall(t->ranks, t->ends, MPI_STATUSES_IGNORE);
    for (int k = 0; k < kUnderWay; ++k) free(t->operations[k].requests);
    free(t->ends);
    MPI_Comm_free(&t->comm);
  }
  MPI_Finalize(); /* the words stay: MPI may send them until here */
}
