// tools/tune_page.h
//
// What `sluice tune` says at its end, for people and as JSON.
//
// Keys of what tune says:
//   sluice_tune                  version of these keys: 1
//   file                         that was written, for runs to load
//   tuned                        what it holds: the keys of a file of tuned settings
//   seconds                      that it took
//   paths                        each directory; the next list
//   set                          all together, if there are several; else null; the last list
//   warnings                     what will hurt, each naming its directory
//   ds_config.aio                for a ds_config.json; of it, Sluice reads queue_depth
//   ds_config.sluice             likewise: with `tuned` a run loads the file
//
// Keys of each directory that tune says something of:
//   path                         as it was given
//   file_bytes                   of the file that was measured, and is gone
//   found                        the next list
//
// Keys of what tune has found:
//   engine                       how it runs
//   untuned_bytes_per_second     mixed, as a run does it with nothing given
//   written_bytes                to all of its drives
//   checked_bytes                read, and found to be what was written
//   measurements                 that the search made
//   cut_short                    whether the search would have gone on
//   tried                        in order: engine, request_bytes, depth, batch, share of the best

#ifndef SLUICE_TOOLS_TUNE_PAGE_H_
#define SLUICE_TOOLS_TUNE_PAGE_H_

#include <string>

#include "tools/json_file.h"
#include "tools/tune_drives.h"

namespace sluice::tools {

// `file`: where the settings are now.
Json TuneJson(const TuneResult& result, const std::string& file);
std::string TunePage(const TuneResult& result, const std::string& file);

// Of what was tried: the best share of each size of a request and bytes in flight, and how much
// each number of bytes in flight gives.
std::string TunePicture(const TunedDrives& found);

}  // namespace sluice::tools

#endif  // SLUICE_TOOLS_TUNE_PAGE_H_
