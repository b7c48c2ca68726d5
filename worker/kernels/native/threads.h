// Threads that share the work of one operator.
#pragma once

#include <cstdint>
#include <type_traits>

namespace firstlight {

// Calls work(piece) for every piece, in any order, on the calling thread and those of its helpers
// that are awake in time: at::get_num_threads() threads at most. Returns when all is done.
//
// A helper that the machine does not run at once is not waited for, unlike one of an OpenMP team:
// whoever is awake does its share. Beside a busy process that is most of the difference between a
// step of 10 ms and one of 50. Helpers wait for more work for a moment, then sleep.
//
// Threads start at the first call, so that a process may fork before it.
void run_pieces(int64_t pieces, void (*work)(void* context, int64_t piece), void* context);

template <typename Work>
void in_parallel(int64_t pieces, Work&& work) {
  using Plain = std::remove_reference_t<Work>;
  run_pieces(
      pieces, [](void* context, int64_t piece) { (*static_cast<Plain*>(context))(piece); },
      const_cast<void*>(static_cast<const void*>(&work)));
}

// Memory that the next pieces will probably read: piece i from `from` + i * `bytes`, that far.
struct Coming {
  const uint8_t* from;
  int64_t bytes;
};

// Helpers that wait for work ask for this memory meanwhile, each for that of the piece it will
// probably take, until the next call.
void expect(const Coming& coming);

}  // namespace firstlight
