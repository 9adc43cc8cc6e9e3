/* Sluice's ranks over MPI: fills the tables of sluice_comm.h.
 *
 * Threads: Sluice calls each table from two threads of its own, and there are three tables. MPI is
 * asked for MPI_THREAD_SERIALIZED, and every call of it is made under one lock. No call under it
 * waits: operations are non-blocking sends and receives, and whoever waits for one tests it, again
 * and again, and sleeps in between. MPI_THREAD_MULTIPLE would do without the lock, but fewer MPIs
 * have it, and it would not help: a wait of MPI's own has no timeout, and Sluice must be able to
 * give up. The program may call MPI as well, under mpi_table_lock().
 *
 * Buffers that lie apart are one message, of a derived datatype: nothing is packed.
 *
 * Ends: a rank that ends, or fails, tells the others why on its way, and their operations fail with
 * its words. Receives are cancelled then. MPI can't take back sends: one that nobody receives stays
 * under way, which Sluice is told, and leaves its memory alone. A rank that is killed is seen by
 * mpirun, which ends all of them. */

#ifndef SLUICE_EXAMPLES_MPI_TABLE_H_
#define SLUICE_EXAMPLES_MPI_TABLE_H_

#include "sluice/sluice_comm.h"

enum { kMpiTables = 3 }; /* what sluice_options.comm wants */

/* Initialises MPI and fills the tables, each over a duplicate of MPI_COMM_WORLD. Ends the program
 * with words if MPI can't be had so. */
void mpi_tables_open(int* argc, char*** argv, sluice_comm_table tables[kMpiTables]);
/* When the runtime is destroyed: finalises MPI. */
void mpi_tables_close(void);
/* 1: takes the lock for calls of MPI's; 0: gives it back. */
void mpi_table_lock(int taken);

#endif /* SLUICE_EXAMPLES_MPI_TABLE_H_ */
