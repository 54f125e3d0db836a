// Saving sequences of a cache, and loading them again. Needs xxHash (<xxhash.h>, header only) and POSIX; part of no
// other header.
//
//     save(cache, {{s}}, "prompt.xq");            // replaces the file when the new one is complete
//     const Loaded l = load(cache, "prompt.xq");  // l.sequences; pages are read where they lie in the file
//     const FileInfo info = inspect("prompt.xq");
//
// save also takes a std::ostream or a callable that is given the bytes, and saved_bytes() says how many there will be;
// load takes a std::istream, bytes in memory, or a callable that gives them.
//
// Limit   the disk, then reading what is checked: 4 to 8 GB/s (docs/performance.md). LoadOptions::verify = false leaves
//         that out. A mapped file costs a page fault for each 4 KB that is read.
#pragma once

#include <xquant/persistence/inspect.hpp>
#include <xquant/persistence/load.hpp>
#include <xquant/persistence/save.hpp>
