"""Series of DICOM images as an archive gives them, small and made up."""

from pathlib import Path

import numpy as np
import pydicom


def write_series(
    folder: Path, values: np.ndarray, person: str = "P1", said: str = "T2", turn: tuple[float, ...] = (1, 0, 0, 0, 1, 0)
) -> Path:
    """(columns, rows, slices) as CT slices of 2 mm, whose pixels have slope 2 and intercept -1024."""
    folder.mkdir(parents=True, exist_ok=True)
    series, study_uid, frame = (pydicom.uid.generate_uid() for _ in range(3))
    for number in range(values.shape[2]):
        one = pydicom.Dataset()
        one.file_meta = pydicom.dataset.FileMetaDataset()
        one.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
        one.SOPClassUID = one.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.2"
        one.SOPInstanceUID = one.file_meta.MediaStorageSOPInstanceUID = pydicom.uid.generate_uid()
        one.SeriesInstanceUID, one.StudyInstanceUID, one.FrameOfReferenceUID = series, study_uid, frame
        one.PatientID, one.PatientName, one.PatientBirthDate, one.PatientSex = person, "X^Y", "", ""
        one.Modality, one.SeriesDescription, one.SeriesNumber, one.InstanceNumber = "CT", said, 3, number + 1
        one.StudyID, one.AccessionNumber, one.StudyDate, one.StudyTime, one.ReferringPhysicianName = "", "", "", "", ""
        one.Manufacturer, one.PositionReferenceIndicator = "m", ""
        one.Columns, one.Rows = values.shape[0], values.shape[1]
        one.SamplesPerPixel, one.PhotometricInterpretation = 1, "MONOCHROME2"
        one.BitsAllocated, one.BitsStored, one.HighBit, one.PixelRepresentation = 16, 16, 15, 0
        one.RescaleSlope, one.RescaleIntercept, one.RescaleType = "2", "-1024", "HU"
        one.PixelSpacing, one.SliceThickness = ["0.8", "0.6"], "2"
        one.ImageOrientationPatient = list(turn)
        normal = np.cross(turn[:3], turn[3:])
        one.ImagePositionPatient = [str(value) for value in np.array([10.0, 20.0, 30.0]) + 2.0 * number * normal]
        one.PixelData = ((values[:, :, number].T + 1024) / 2).astype(np.uint16).tobytes()
        one.save_as(folder / f"{values.shape[2] - number:03}.dcm", enforce_file_format=True)  # not in their order
    return folder


def write_radiograph(file: Path, stored: np.ndarray, person: str = "P1", **tags: object) -> Path:
    """(rows, columns) or (frames, rows, columns) of 12-bit stored values as one DX file; `tags` replace its own."""
    file.parent.mkdir(parents=True, exist_ok=True)
    one = pydicom.Dataset()
    one.file_meta = pydicom.dataset.FileMetaDataset()
    one.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    one.SOPClassUID = one.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.1.1"
    one.SOPInstanceUID = one.file_meta.MediaStorageSOPInstanceUID = pydicom.uid.generate_uid()
    one.SeriesInstanceUID = pydicom.uid.generate_uid()
    one.PatientID, one.PatientName, one.Modality, one.InstanceNumber = person, "X^Y", "DX", 1
    one.Rows, one.Columns = stored.shape[-2:]
    if stored.ndim == 3:
        one.NumberOfFrames = len(stored)
    one.SamplesPerPixel, one.PhotometricInterpretation = 1, "MONOCHROME2"
    one.BitsAllocated, one.BitsStored, one.HighBit, one.PixelRepresentation = 16, 12, 11, 0
    one.PixelData = stored.astype(np.uint16).tobytes()
    for name, value in tags.items():
        setattr(one, name, value)
    one.save_as(file, enforce_file_format=True)
    return file
