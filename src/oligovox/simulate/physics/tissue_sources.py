"""Data only: where the values of `tissue_table` come from."""

from __future__ import annotations

SOURCES: dict[str, str] = {
    # values read again, most of them in the abstract
    "bazelaire2004": (
        "de Bazelaire CMJ et al. 2004, MR imaging relaxation times of abdominal and pelvic tissues measured in "
        "vivo at 3.0 T, Radiology 230:652. The 3 T values are in the abstract; those at 1.5 T are from memory."
    ),
    "cox_scaled": (
        "The calibrated 3 T value times the ratio of T2 between fields of Cox EF and Gowland PA 2010, Magn Reson "
        "Med 64:1440 (frontal grey matter 87, 76, 47 ms, occipital grey matter 80, 68, 46 ms, white matter 80, "
        "71, 47 ms at 1.5, 3 and 7 T; abstract)."
    ),
    "gajdosik2014": (
        "Gajdosik M et al. 2014, in vivo relaxation behavior of liver compounds at 7 tesla, J Magn Reson Imaging "
        "40:1365 (liver water T1 1362, T2 15 ms; methylene of fat T1 514 ms; abstract)."
    ),
    "koolstra2019": (
        "Koolstra K et al. 2019, Magn Reson Med 81, magnetic resonance fingerprinting of the eye at 7 T (table 1: "
        "lens nucleus T1 996, T2 21 ms; vitreous T1 3599 ms)."
    ),
    "li2015": (
        "Li X et al. 2015, measuring renal tissue relaxation times at 7 T, NMR Biomed 28:63 (cortex 1661, medulla "
        "2094 ms; abstract)."
    ),
    "li2015_scaled": (
        "The 3 T value of de Bazelaire 2004 times the ratio of T2 at 7 T to that at 3 T of Li 2015 (cortex "
        "108/121, medulla 126/138; abstract)."
    ),
    "marques2021": (
        "Marques JP et al. 2021, QSM reconstruction challenge 2.0: a realistic in silico head phantom, Magn Reson "
        "Med 86:526 (white matter -30, grey matter 20, muscle 0, bone -2100 ppb; read in a code that quotes "
        "them)."
    ),
    "noeth2020": (
        "From the shortening of T1 by contrast agent in Noeth U et al. 2020, quantitative T1 mapping indicates "
        "tumor infiltration beyond the enhancing part of glioblastomas, NMR Biomed 33 (enhancing tumour 838, "
        "oedema 123, normal tissue 32 ms; abstract), with the T1 and the relaxivity of this page."
    ),
    "r2_iron": (
        "R2 = 9 + (0.9 + 20000 [Fe] + 5.7 [lipid]) B0 per s of van Gelderen P et al., dependence of brain-tissue "
        "R2 on MRI field strength, Magn Reson Med (abstract; authors from memory), iron of Hallgren and Sourander "
        "1958 (from memory), times the factor that takes its grey matter to ours."
    ),
    "spees2001": (
        "Oxygenation of 0.65 to 0.7 in veins and haematocrit 0.42 with 0.27 ppm (cgs) between deoxygenated and "
        "oxygenated cells, Spees WM et al. 2001, Magn Reson Med 45:533 (abstract); arterial blood is slightly "
        "diamagnetic to water."
    ),
    "wright2008": (
        "Wright PJ et al. 2008, water proton T1 measurements in brain tissue at 7, 3, and 1.5T, Magn Reson Mater "
        "Phy 21:121 (abstract)."
    ),
    "wright_scaled": (
        "Wright 2008 at 3 T (caudate 1395, putamen 1332 ms) times 1420/1607, the ratio of our grey matter to theirs."
    ),
    # values from memory
    "gold2004": (
        "Gold GE et al. 2004, musculoskeletal MRI at 3.0 T: relaxation times and image contrast, AJR 183:343. "
        "From memory, not re-read."
    ),
    "peters2007": (
        "Peters AM et al. 2007, T2* measurements in human brain at 1.5, 3 and 7 T, Magn Reson Imaging 25:748. "
        "From memory, not re-read."
    ),
    "schenck1996": (
        "Schenck JF 1996, the role of magnetic susceptibility in MRI, Med Phys 23:815 (air 0.36 ppm, water -9.05 "
        "ppm). From memory, not re-read."
    ),
    "spijkerman2018": (
        "Spijkerman JM et al. 2018, T2 mapping of cerebrospinal fluid: 3 T versus 7 T, MAGMA 31:415 (abstract: "
        "shorter at 7 T; the value from memory)."
    ),
    "wansapura1999": (
        "Wansapura JP et al. 1999, NMR relaxation times in the human brain at 3.0 tesla, J Magn Reson Imaging "
        "9:531. From memory, not re-read."
    ),
    "zhang2013": (
        "Zhang X et al. 2013, in vivo blood T1 measurements at 1.5 T, 3 T, and 7 T, Magn Reson Med 70:1082 "
        "(abstract: about 2.1 s at 7 T; the digits from memory)."
    ),
    # values of ours, with the reason
    "calibrated": (
        "Chosen within published values so that the contrast of the simulated 3 T exam is that of patients (open "
        "MS data of Ljubljana): water content within published ranges."
    ),
    "chosen_air": "Chosen: a trace, so that air gives no signal and every equation stays defined.",
    "chosen_blood": (
        "Chosen, from memory of Zhao JM et al. 2007 (Magn Reson Med 58:592) at 3 T and on the trend to the other "
        "fields."
    ),
    "chosen_flow": (
        "Chosen: blood that moves is dark in a train of spin echoes (flow void), so this is far below the T2 of "
        "blood at rest, such as 62 ms in veins at 3 T (Qin Q et al. 2011, Magn Reson Med 65:471, abstract) and 20 "
        "ms in veins, 68 ms in arteries at 7 T (Krishnamurthy LC et al. 2014, Magn Reson Med 71:2035, abstract)."
    ),
    "chosen_body7": "Chosen: few organs were measured at 7 T; on the trend from 1.5 to 3 T.",
    "chosen_bone": (
        "Chosen: most water of cortical bone has T2 of about 0.4 ms (abstract of PubMed Central PMC3899101), far "
        "below any echo time here."
    ),
    "chosen_chi": (
        "Chosen within published values relative to CSF: about 0.1 ppm in the substantia nigra (Schaefer A et al. "
        "2012, Hum Brain Mapp 33:2831, abstract); other nuclei from memory of Marques 2021 and Wharton and "
        "Bowtell 2010 (NeuroImage 53:515); soft tissues are near water."
    ),
    "chosen_dirty": "Chosen: just short of a mild lesion; it is meant to take less than half of a voxel.",
    "chosen_limbic": (
        "Chosen: the limbic lobe is brighter than other cortex on FLAIR in healthy people (Hirai 2000, from memory); about a fifth "
        "brighter at most."
    ),
    "chosen_plexus": "Chosen: between grey matter and fluid, on FLAIR a little brighter than grey matter.",
    "chosen_fat": (
        "Chosen: adipose tissue is nearly all fat, red and yellow marrow mix, a healthy liver has less than 5 %."
    ),
    "chosen_fat_chi": "Chosen: fat is less diamagnetic than water, by some tenths of a ppm; no source was read.",
    "chosen_fluid": (
        "Chosen: watery fluids have T1 near 4 s and T2 of 0.5 to 2 s, less where protein is dissolved or the "
        "space is narrow; CSF at 3 T was measured with T1 4.3 to 4.5 s and T2 1.9 to 2.4 s."
    ),
    "chosen_lesion": (
        "Chosen: loss of myelin lengthens T2* (most lesions have a low R2*, Harrison DM et al. 2016, AJNR "
        "37:1447) and makes tissue less diamagnetic; an enhancing lesion lies between mild and severe."
    ),
    "chosen_nuclei": "Chosen: between grey and white matter; iron shortens T1 further.",
    "chosen_rim": (
        "Chosen: the relaxation of a mild lesion, and iron of 25 (weak) to 120 ppb (strong) above white matter "
        "with the R2* that goes with it."
    ),
    "chosen_soft": "Chosen: between muscle and water, by the look of clinical images.",
    "chosen_t2s": (
        "Chosen: R2* grows about linearly with field (Peters 2007, abstract of 2006) and with iron, 0.1/s per ppb "
        "and T; in the body, by the look of clinical images."
    ),
    "chosen_tumour": (
        "Chosen: T1, T2 and water grow from infiltrated over solid to necrotic tumour, by the look of clinical "
        "images; blood products hold iron."
    ),
    "chosen_uptake": (
        "Chosen: blood volume (brain) or extracellular volume (body) times about 0.7 mmol/L in plasma some "
        "minutes after the injection; leaking lesions less than tumours."
    ),
    "chosen_water": (
        "Chosen: water content of the tissue; grey matter 0.84, white matter 0.69 were measured (single-scan "
        "water mapping, Front Neurol 2019, 10:1333, abstract)."
    ),
    "definition": "CSF is the reference.",
    "lesion_scaled": (
        "Chosen: the calibrated 3 T value times the ratio between fields of the T1 of white matter or the T2 of "
        "grey matter."
    ),
}
"""Source key → citation, and what was read of it; or, for a value of ours, the reason."""
