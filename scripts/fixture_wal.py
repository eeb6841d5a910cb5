"""The bytes of a WAL, as far as the fixtures' generator needs them: to count frames and to spoil them on purpose."""

import struct

HEADER_BYTES, FRAME_HEADER_BYTES = 32, 24
MAGIC_LITTLE, MAGIC_BIG = 0x377F0682, 0x377F0683


def checksum(order, data, sums=(0, 0)):
    """The running checksum over `data`, whose words are read in the given order (`<` or `>`)."""
    s0, s1 = sums
    for x0, x1 in struct.iter_unpack(order + "II", data):
        s0 = (s0 + x0 + s1) & 0xFFFFFFFF
        s1 = (s1 + x1 + s0) & 0xFFFFFFFF
    return s0, s1


class Wal:
    """A WAL in memory."""

    def __init__(self, data):
        self.data = data
        self.magic, _, self.page_size, _ = struct.unpack(">4I", data[:16])
        self.salts = data[16:24]
        self.frame_bytes = FRAME_HEADER_BYTES + self.page_size

    def frames_in_file(self):
        """Whole frames, valid or not."""
        return (len(self.data) - HEADER_BYTES) // self.frame_bytes

    def frame(self, index):
        """The bytes of a frame, from 0."""
        start = HEADER_BYTES + index * self.frame_bytes
        return self.data[start : start + self.frame_bytes]

    def valid_frames(self):
        """The frames that belong to the log: the header's salts, and a checksum that goes on from the frame before."""
        order = ">" if self.magic == MAGIC_BIG else "<"
        sums = checksum(order, self.data[:24])
        for index in range(self.frames_in_file()):
            frame = self.frame(index)
            sums = checksum(order, frame[:8] + frame[24:], sums)
            if frame[8:16] != self.salts or struct.unpack(">II", frame[16:24]) != sums:
                return
            yield frame

    def transactions(self):
        """The number of frames of each transaction."""
        counts, count = [], 0
        for frame in self.valid_frames():
            count += 1
            if frame[4:8] != b"\0\0\0\0":
                counts.append(count)
                count = 0
        return counts


def as_big_endian(data):
    """The same log as a big-endian machine would have written it: another magic, and all checksums anew."""
    wal = Wal(data)
    header = struct.pack(">I", MAGIC_BIG) + data[4:24]
    sums = checksum(">", header)
    out = [header, struct.pack(">II", *sums)]
    for frame in wal.valid_frames():
        sums = checksum(">", frame[:8] + frame[24:], sums)
        out += [frame[:16], struct.pack(">II", *sums), frame[24:]]
    return b"".join(out)


def flip_bit(data, transaction_no):
    """Flips one bit in the page of a transaction's first frame; transactions count from 1."""
    wal = Wal(data)
    first = sum(wal.transactions()[: transaction_no - 1])
    at = HEADER_BYTES + first * wal.frame_bytes + FRAME_HEADER_BYTES + wal.page_size // 2
    return data[:at] + bytes([data[at] ^ 0x10]) + data[at + 1 :]
