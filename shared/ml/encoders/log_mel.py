"""Log-mel spectrograms, as decode processes compute them: librosa, no torch."""

import numpy as np
from librosa import power_to_db
from librosa.feature import melspectrogram
from librosa.util import fix_length
from numpy.typing import NDArray

#: Frames of 25 ms, one every 10 ms.
SAMPLE_RATE, WINDOW, HOP, N_FFT = 16_000, 400, 160, 512
N_MELS, LOWEST_HZ = 64, 20.0

#: Frames in a second.
FRAME_RATE = SAMPLE_RATE // HOP


def log_mel(samples: NDArray[np.float32]) -> NDArray[np.float32]:
    """Mono PCM at 16 kHz, float32 [samples ≥ 1], to its powers in 64 mel bands in bel, float32 [frames, 64]."""
    samples = fix_length(samples, size=max(len(samples), N_FFT))
    power = melspectrogram(
        y=samples, sr=SAMPLE_RATE, n_fft=N_FFT, win_length=WINDOW, hop_length=HOP, n_mels=N_MELS, fmin=LOWEST_HZ
    )
    return np.ascontiguousarray(power_to_db(power, top_db=None).T / 10, np.float32)
