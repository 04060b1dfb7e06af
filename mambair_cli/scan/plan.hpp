// How a scan is cut for the threads; what it computes does not depend on that.
#pragma once
#include <algorithm>

#include "cpu_kernel.hpp"

// A chain is a group of blocks of channels of one picture, along the directions that share a buffer
// of results one after the other; its pieces are taken by whichever thread is free. Where even single blocks are few,
// by the size of the work alone, the sequence is cut into segments whose ends are worked out from zero and then carried
// on: one multiply-add more for each update, and with threads enough all segments can run at once, for a second pass.
struct Plan {
  int parts, blocks, groups, pieces, steps;  // buffers of results, and what one piece has of the sequence
  bool segments, at_once;

  Plan(const Scan& s, int width, int parts, int threads) : parts(parts), blocks((s.channels + width - 1) / width) {
    const int tasks = s.batch * parts, per_part = (s.directions + parts - 1) / parts;
    segments = s.directions * ((s.channels + 15) / 16) < NARROW && s.steps >= 2 * SEGMENT;
    at_once = segments && per_part == 1 && threads >= 2 * tasks * blocks;
    // As few groups as keep all threads busy: a group visits each position once.
    for (groups = 1; groups < blocks && (blocks + groups - 1) / groups * threads > blocks * tasks; groups++) {}
    steps = s.steps;
    if (segments)
      steps = SEGMENT;
    else if (threads > 1 && (blocks % groups || tasks * groups % threads))
      steps = ((s.steps + PIECES - 1) / PIECES + CHUNK - 1) / CHUNK * CHUNK;
    pieces = steps ? (s.steps + steps - 1) / steps : 0;
  }

  // Buffers that the sum over the directions is best made in: two, so that narrow networks occupy two threads with no
  // group of blocks divided, or one for each direction where threads are many.
  static int parts_for(int64_t batch, int64_t directions, int64_t blocks, int threads) {
    const int64_t halves = std::min<int64_t>(2, directions);
    return int(batch * halves * blocks >= threads ? halves : directions);
  }

  static constexpr int NARROW = 8, SEGMENT = 1024, PIECES = 8;
  static_assert(SEGMENT % CHUNK == 0);
};

// One of `groups` equal shares of the blocks.
struct Share {
  int begin, end;

  Share(const Plan& plan, int group)
      : begin(group * plan.blocks / plan.groups), end((group + 1) * plan.blocks / plan.groups) {}
};
